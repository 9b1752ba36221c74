"use strict";

// Themes. The system's is followed until the reader chooses one.
const { plots, themes } = JSON.parse(document.getElementById("plot-data").textContent);
const root = document.documentElement;
const systemIsDark = matchMedia("(prefers-color-scheme: dark)");
const toggle = document.getElementById("theme");

function chosenTheme() {
  try { return localStorage.getItem("melstream-theme"); } catch { return null; }
}

function rememberTheme(theme) {
  try { localStorage.setItem("melstream-theme", theme); } catch { /* a page from disk may not */ }
}

function showTheme() {
  const theme = chosenTheme() ?? root.dataset.chosen ?? (systemIsDark.matches ? "dark" : "light");
  if (root.dataset.theme === theme) return;
  root.dataset.theme = theme;
  toggle.textContent = theme === "dark" ? "Light theme" : "Dark theme";
  for (const canvas of document.querySelectorAll(".js-plotly-plot")) {
    Plotly.relayout(canvas, { template: { layout: themes[theme].layout } });
  }
}

toggle.addEventListener("click", () => {
  root.dataset.chosen = root.dataset.theme === "dark" ? "light" : "dark";
  rememberTheme(root.dataset.chosen);
  showTheme();
});
systemIsDark.addEventListener("change", showTheme);
showTheme();

// Plots. A finger scrolls the page rather than zooming into what lies under it.
const settings = { displaylogo: false, displayModeBar: false, responsive: true };
const dragmode = matchMedia("(pointer: coarse)").matches ? false : "zoom";
for (const canvas of document.querySelectorAll("[data-plot]")) {
  const { data, layout } = plots[canvas.dataset.plot];
  const template = { layout: themes[root.dataset.theme].layout };
  Plotly.newPlot(canvas, data, { ...layout, template, dragmode }, settings);
}

// Search: hides what does not contain every word.
for (const input of document.querySelectorAll("input[data-filters]")) {
  const entries = [...document.querySelectorAll(input.dataset.filters)];
  const note = document.getElementById(input.getAttribute("aria-describedby"));
  const search = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const entry of entries) {
      const text = entry.dataset.text.toLowerCase();
      entry.hidden = !words.every((word) => text.includes(word));
      shown += !entry.hidden;
    }
    note.textContent = `${shown} of ${entries.length} shown`;
  };
  input.addEventListener("input", search);
  input.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { input.value = ""; search(); }
  });
  search();
}

// A clip of the gallery, larger. The dialog closes with Escape and gives the focus back.
const dialog = document.getElementById("clip");
for (const button of document.querySelectorAll(".clip .open")) {
  button.addEventListener("click", () => {
    const clip = button.closest(".clip");
    dialog.querySelector("h2").textContent = clip.querySelector("h3").textContent;
    const content = dialog.querySelector(".content");
    content.replaceChildren(...[".spectrogram", "audio", ".more"]
      .map((part) => clip.querySelector(part)?.cloneNode(true)).filter(Boolean));
    for (const part of content.children) part.hidden = false;
    dialog.showModal();
  });
}
dialog?.querySelector(".close").addEventListener("click", () => dialog.close());
dialog?.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
dialog?.addEventListener("close", () => dialog.querySelector(".content").replaceChildren());
