// Keys, enlarging, prefetch and messages of the labelling app. Everything else is htmx and plain HTML.
"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const screen = byId("screen");
  const message = byId("message");
  const zoom = byId("zoom");
  const help = byId("help");
  // A second press of the same key must not answer an item that has not been seen.
  const settle = 250;
  let shownAt = performance.now();
  let busy = false;

  const state = (value) => { busy = value === "busy"; document.body.dataset.state = value; };
  const keysOn = () => localStorage.getItem("pfungst-keys") !== "off";

  function prefetch() {
    const files = byId("prefetch")?.dataset.files;
    for (const file of files ? files.split(" ") : []) new Image().src = file;
  }

  function tell(text) {
    const p = document.createElement("p");
    p.textContent = text;
    message.replaceChildren(p);
  }

  // An answer is refused while one is on its way, and right after a new item has appeared.
  document.addEventListener("submit", (event) => {
    if (busy || performance.now() - shownAt < settle) { event.preventDefault(); event.stopImmediatePropagation(); }
  }, true);
  document.addEventListener("htmx:beforeRequest", (event) => {
    if (screen?.contains(event.target)) state("busy");
  });
  document.addEventListener("htmx:afterSwap", (event) => {
    if (event.detail.target !== screen) return;
    message.replaceChildren();
    shownAt = performance.now();
    byId("live").textContent = screen.querySelector("form")?.dataset.say ?? "";
    byId("question")?.focus({ preventScroll: true });
    prefetch();
  });
  document.addEventListener("htmx:afterRequest", (event) => {
    if (screen && screen.contains(event.detail.elt) || event.detail.target === screen) state("ready");
  });
  for (const name of ["htmx:sendError", "htmx:timeout"]) {
    document.addEventListener(name, () => {
      state("ready");
      tell(screen
        ? "The server cannot be reached. Your last answer may not be stored: answer again when it is back; nothing counts twice."
        : "The server cannot be reached; the figures below are the last ones.");
    });
  }
  document.addEventListener("htmx:afterRequest", (event) => {
    if (!screen && event.detail.successful) message.replaceChildren();
  });
  if (!screen) return;

  // Enlarging: the dialog walks through all images of the screen.
  let at = 0;
  const zooms = () => [...screen.querySelectorAll("[data-zoom]")];
  function enlarge(index) {
    const all = zooms();
    if (!all.length) return;
    at = (index + all.length) % all.length;
    const image = new Image();
    image.src = all[at].dataset.zoom;
    image.alt = all[at].dataset.caption;
    zoom.querySelector(".zoomed").replaceChildren(image);
    zoom.querySelector(".caption").textContent = `${all[at].dataset.caption} (${at + 1} of ${all.length})`;
    if (!zoom.open) zoom.showModal();
  }
  screen.addEventListener("click", (event) => {
    const button = event.target.closest("[data-zoom]");
    if (button) enlarge(zooms().indexOf(button));
  });
  zoom.addEventListener("click", (event) => {
    const step = event.target.closest("[data-step]");
    if (step) enlarge(at + Number(step.dataset.step));
    else if (event.target === zoom || event.target.closest("[data-close], img")) zoom.close();
  });
  zoom.addEventListener("close", () => zooms()[at]?.focus({ preventScroll: true }));

  const check = byId("keys-on");
  check.checked = keysOn();
  check.addEventListener("change", () => localStorage.setItem("pfungst-keys", check.checked ? "on" : "off"));
  byId("help-open").addEventListener("click", () => help.showModal());
  help.addEventListener("click", (event) => {
    if (event.target === help || event.target.closest("[data-close]")) help.close();
  });

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.isComposing) return;
    if (zoom.open) {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step) enlarge(at + step);
      return;
    }
    if (event.target instanceof HTMLTextAreaElement) {
      if (event.key === "Enter" || event.key === "Escape") { event.preventDefault(); event.target.blur(); }
      return;
    }
    if (help.open || !keysOn()) return;
    const key = event.key.toLowerCase();
    if (key === "?") { help.showModal(); event.preventDefault(); return; }
    if (/^[1-9]$/.test(key)) { if (Number(key) <= zooms().length) enlarge(firstOf(Number(key))); return; }
    const button = screen.querySelector(`button[data-key="${CSS.escape(key)}"]`);
    if (button) { event.preventDefault(); button.click(); }
  });
  // 1 to 9 count figures, not their heatmaps.
  function firstOf(number) {
    const figures = [...screen.querySelectorAll("figure, .reference .zoom")];
    const figure = figures[number - 1];
    const first = figure?.matches("[data-zoom]") ? figure : figure?.querySelector("[data-zoom]");
    return first ? zooms().indexOf(first) : 0;
  }

  prefetch();
  state("ready");
})();
