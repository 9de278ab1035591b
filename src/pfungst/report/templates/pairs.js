"use strict";
(() => {
  const namespace = "http://www.w3.org/2000/svg";
  const make = (name, attributes) => {
    const node = document.createElementNS(namespace, name);
    for (const key in attributes) node.setAttribute(key, attributes[key]);
    return node;
  };
  const clip = (x, limit) => Math.max(-limit, Math.min(limit, x));
  const percent = (x) => `${(100 * x).toFixed(1)}\u202f%`.replace("-", "\u2212");

  document.querySelectorAll("figure.pair").forEach((figure) => {
    const reads = figure.classList.contains("reads");
    const points = JSON.parse(figure.dataset.points), names = JSON.parse(figure.dataset.names);
    const columns = JSON.parse(figure.dataset.columns);
    const [rows, width] = [points[0].length, points[1].length];
    const scale = +figure.dataset.scale, unit = +figure.dataset.unit;
    const packed = atob(figure.dataset.values);
    const values = new Float32Array(rows * width);
    for (let i = 0; i < values.length; i++) {
      const root = ((packed.charCodeAt(i) << 24) >> 24) / 127;
      values[i] = Math.sign(root) * root * root;
    }
    const order = [...values.keys()].sort((a, b) => Math.abs(values[b]) - Math.abs(values[a])).slice(0, 300);
    const lines = figure.querySelector(".lines"), marks = figure.querySelector(".marks");
    const slider = figure.querySelector("input"), shown = figure.querySelector("output"), said = figure.querySelector(".said");
    const svg = figure.querySelector("svg"), sides = [...figure.querySelectorAll(".side")];
    const hint = said.textContent;

    const curve = (a, b) => {
      if (reads) {
        const top = a[1] + 12, bottom = b[1] - 12, middle = (top + bottom) / 2;
        return `M${a[0]} ${top}C${a[0]} ${middle} ${b[0]} ${middle} ${b[0]} ${bottom}`;
      }
      const middle = (a[0] + b[0]) / 2;
      return `M${a[0]} ${a[1]}C${middle} ${a[1]} ${middle} ${b[1]} ${b[0]} ${b[1]}`;
    };
    const line = (index, opacity) => make("path", {
      class: values[index] > 0 ? "supports" : "contradicts",
      d: curve(points[0][Math.floor(index / width)], points[1][index % width]),
      opacity: opacity.toFixed(3),
    });
    // Divided by mean(R^4)^(1/4), what lies within 2 removed, clipped to 18, divided by 18, squared.
    const opacity = (value) => {
      const u = value / scale;
      return (clip(u - clip(u, 2), 18) / 18) ** 2;
    };
    const all = () => {
      marks.replaceChildren();
      said.textContent = hint;
      lines.replaceChildren(...order.slice(0, +slider.value).reverse()
        .map((index) => [index, opacity(values[index])]).filter(([, o]) => o >= 0.003).map(([i, o]) => line(i, o)));
    };
    const name = (side, i) => {
      if (names.length) return `\u201c${names[side][i]}\u201d`;
      return `row ${Math.floor(i / columns[side]) + 1}, column ${(i % columns[side]) + 1}`;
    };
    const box = (side, i, kind) => {
      const [x, y, w, h] = points[side][i];
      return make("rect", { class: kind, x: x - w / 2, y: y - h / 2, width: w, height: h });
    };
    let current = null;
    const choose = (side, i) => {
      if (current && current[0] === side && current[1] === i) return;
      current = [side, i];
      const index = side === 0
        ? Array.from({ length: width }, (_, q) => i * width + q)
        : Array.from({ length: rows }, (_, p) => p * width + i);
      index.sort((a, b) => Math.abs(values[b]) - Math.abs(values[a]));
      const best = index.slice(0, 8), most = Math.max(Math.abs(values[best[0]]), 1e-12);
      const other = (at) => (side === 0 ? at % width : Math.floor(at / width));
      lines.replaceChildren(...best.map((at) => line(at, Math.abs(values[at]) / most)));
      marks.replaceChildren(box(side, i, "here"), ...best.slice(0, 3).map((at) => box(1 - side, other(at), "match")));
      const total = index.reduce((sum, at) => sum + values[at], 0) * unit;
      said.textContent = `${side ? "Second" : "First"}, ${name(side, i)}: ${percent(total)} of the similarity; `
        + `matched most with ${best.slice(0, 3).map((at) => `${name(1 - side, other(at))} (${percent(values[at] * unit)})`).join("; ")}.`;
    };
    const leave = () => { if (current) { current = null; all(); } };

    svg.addEventListener("pointermove", (event) => {
      const matrix = svg.getScreenCTM();
      if (!matrix) return;
      const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(matrix.inverse());
      for (const side of [0, 1]) {
        const i = points[side].findIndex(([x, y, w, h]) => Math.abs(at.x - x) <= w / 2 && Math.abs(at.y - y) <= h / 2);
        if (i >= 0) { choose(side, i); return; }
      }
    });
    svg.addEventListener("pointerleave", leave);
    sides.forEach((node, side) => {
      node.addEventListener("focus", () => { if (node.matches(":focus-visible")) choose(side, Math.floor(points[side].length / 2)); });
      node.addEventListener("blur", leave);
      node.addEventListener("keydown", (event) => {
        const wide = columns[side] || points[side].length, count = points[side].length;
        const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -wide, ArrowDown: wide }[event.key];
        if (event.key === "Escape") { leave(); return; }
        if (step === undefined) return;
        event.preventDefault();
        const from = current && current[0] === side ? current[1] : Math.floor(count / 2);
        const next = from + step;
        if (next < 0 || next >= count) return;
        if (Math.abs(step) === 1 && Math.floor(next / wide) !== Math.floor(from / wide)) return;
        choose(side, next);
      });
    });
    slider.addEventListener("input", () => { current = null; shown.textContent = slider.value; all(); });
  });
})();
