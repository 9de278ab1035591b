"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  all(".js-only").forEach((node) => { node.hidden = false; });

  // What is lazy is built when its details are opened.
  document.addEventListener("toggle", (event) => {
    if (!event.target.open) return;
    all(":scope > .inside > template[data-lazy]", event.target).forEach((node) => node.replaceWith(node.content));
  }, true);

  // Search boxes hide what does not match.
  all(".finder").forEach((finder) => {
    const [box, flag, said] = ['[type="search"]', "[data-flag]", "output"].map((s) => finder.querySelector(s));
    const places = all(finder.dataset.target).map((node) => {
      const head = node.querySelector("summary .name") || node.querySelector("th") || node;
      return [node, head.textContent.toLowerCase()];
    });
    const total = places.length.toLocaleString("en");
    const sift = () => {
      const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
      let left = 0;
      for (const [node, words2] of places) {
        const fits = words.every((w) => words2.includes(w)) && (!flag || !flag.checked || words2.includes("spurious"));
        node.hidden = !fits;
        left += fits;
      }
      said.textContent = left === places.length ? `${total} ${finder.dataset.noun}` : `${left.toLocaleString("en")} of ${total} ${finder.dataset.noun}`;
    };
    box.addEventListener("input", sift);
    // Enter goes to the first that is left, and opens it.
    box.addEventListener("keydown", (event) => {
      const first = event.key === "Enter" && places.find(([node]) => !node.hidden);
      if (!first) return;
      event.preventDefault();  // else the summary that gets the focus is closed again
      if (first[0].tagName === "DETAILS") first[0].open = true;
      (first[0].querySelector("summary, a") || first[0]).focus();
      first[0].scrollIntoView({ block: "nearest" });
    });
    if (flag) flag.addEventListener("change", sift);
  });

  // A link into something folded opens it.
  const reveal = () => {
    const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    for (let node = target; node; node = node.parentElement) if (node.tagName === "DETAILS") node.open = true;
    target.scrollIntoView();
  };
  addEventListener("hashchange", reveal);
  reveal();

  // Paper cannot be clicked: everything is open in print.
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = all("details:not([open])");
    closed.forEach((node) => { node.open = true; });
  });
  addEventListener("afterprint", () => closed.forEach((node) => { node.open = false; }));

  // Outlines of masks on or off, everywhere.
  const switches = all('[data-toggle="outlines"]');
  switches.forEach((box) => box.addEventListener("change", () => {
    switches.forEach((other) => { other.checked = box.checked; });
    document.body.classList.toggle("no-outlines", !box.checked);
  }));

  // The table of contents says where one is.
  const links = all(".contents a");
  const places = links
    .map((link) => [link, document.getElementById(decodeURIComponent(link.hash.slice(1)))])
    .filter(([, place]) => place);
  let waiting = false;
  const mark = () => {
    waiting = false;
    let current = places[0];
    for (const pair of places) if (pair[1].getBoundingClientRect().top < innerHeight / 3) current = pair;
    if (scrollY + innerHeight >= document.documentElement.scrollHeight - 2) current = places[places.length - 1];
    links.forEach((link) => link.toggleAttribute("aria-current", current && link === current[0]));
    const list = document.querySelector(".contents > ol");
    if (current && list.scrollWidth > list.clientWidth) {
      list.scrollLeft = current[0].offsetLeft - list.offsetLeft - 16;
    }
  };
  addEventListener("scroll", () => { if (!waiting) { waiting = true; requestAnimationFrame(mark); } }, { passive: true });
  mark();

  // Tables that are wider than the page say so.
  const wide = () => all(".table > .scroll").forEach((box) =>
    box.parentElement.classList.toggle("more", box.scrollWidth > box.clientWidth + 1));
  addEventListener("resize", wide);
  document.addEventListener("toggle", wide, true);
  wide();

  // Pictures enlarged; arrow keys walk through those of one example.
  const viewer = document.querySelector(".viewer");
  let row = [], position = 0;
  const show = (index) => {
    position = (index + row.length) % row.length;
    viewer.querySelector(".stage").replaceChildren(row[position].querySelector(".frame").cloneNode(true));
    const heading = row[position].closest(".strip").querySelector("h5").firstChild.textContent;
    viewer.querySelector(".label").textContent = `${heading}: ${row[position].querySelector(".caption").textContent}`;
  };
  document.addEventListener("click", (event) => {
    const tile = event.target.closest("button.tile");
    if (!tile) return;
    row = all("button.tile", tile.closest(".exhibit"));
    show(row.indexOf(tile));
    viewer.showModal();
  });
  viewer.querySelector(".previous").addEventListener("click", () => show(position - 1));
  viewer.querySelector(".next").addEventListener("click", () => show(position + 1));
  viewer.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") show(position - 1);
    if (event.key === "ArrowRight") show(position + 1);
  });
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
  viewer.addEventListener("close", () => row[position]?.focus());
})();
