// The chart of a run, what stays open when a live page is renewed, and the end of a live run. All else is in the templates.
"use strict";

const DARK = matchMedia("(prefers-color-scheme: dark)");
const charts = new Map();
const WHOLE = [0, 1, 2, 3, 4, 5, 6].flatMap((power) => [1, 2, 5].map((factor) => factor * 10 ** power)); // between ticks

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function percent(plot, value) {
  return value === null || value === undefined ? "–" : `${value} %`;
}

function options(place) {
  const axis = { stroke: colour("ink"), grid: { stroke: colour("line"), width: 1 }, ticks: { stroke: colour("line") } };
  const alone = (plot) => plot.data[0].length === 1; // a line through one point is none
  const line = (label, name, more) => ({ label, stroke: colour(name), width: 2, points: { show: alone, size: 8, fill: colour(name) }, value: percent, ...more });
  return {
    width: place.clientWidth,
    height: 300,
    scales: { x: { time: false, range: (plot, low, high) => (alone(plot) ? [plot.data[0][0] - 0.5, plot.data[0][0] + 0.5] : [low, high]) }, y: { range: [0, 100] } },
    axes: [{ ...axis, label: "step", incrs: WHOLE }, { ...axis, size: 60, values: (plot, ticks) => ticks.map((tick) => `${tick} %`) }],
    series: [
      { label: "step" },
      line("search score", "good"),
      line("lower end", "good", { width: 0, points: { show: false } }),
      line("upper end", "good", { width: 0, points: { show: false } }),
      line("budget left", "main", { dash: [6, 4] }),
    ],
    bands: [{ series: [3, 2], fill: `${colour("good")}33` }],
  };
}

function draw(place, columns) {
  charts.get(place)?.destroy();
  const plot = new uPlot(options(place), columns, place);
  let pressed = 0;
  plot.over.addEventListener("mousedown", (event) => { pressed = event.clientX; });
  plot.over.addEventListener("click", (event) => {
    const index = plot.cursor.idx;
    if (index !== null && Math.abs(event.clientX - pressed) < 3) location.href = `step?n=${plot.data[0][index]}`;
  });
  charts.set(place, plot);
}

async function load(place) {
  const answer = await fetch(place.dataset.source);
  if (!answer.ok) return;
  const columns = await answer.json();
  if (columns[0].length === 0) place.textContent = "No step with a score yet.";
  else if (charts.has(place)) charts.get(place).setData(columns);
  else { place.textContent = ""; draw(place, columns); }
}

function redraw() {
  for (const [place, plot] of charts) draw(place, plot.data);
}

document.addEventListener("DOMContentLoaded", () => {
  const places = document.querySelectorAll("[data-source]");
  places.forEach(load);
  DARK.addEventListener("change", redraw);
  addEventListener("resize", () => charts.forEach((plot, place) => plot.setSize({ width: place.clientWidth, height: 300 })));

  let open = [];
  const renewed = (event) => event.target.id === "overview";
  document.body.addEventListener("htmx:beforeSwap", (event) => {
    if (renewed(event)) open = [...event.target.querySelectorAll("details[open]")].map((details) => details.id);
  });
  document.body.addEventListener("htmx:afterSwap", (event) => {
    if (!renewed(event)) return;
    open.forEach((id) => document.getElementById(id)?.setAttribute("open", ""));
    places.forEach(load);
  });
  document.body.addEventListener("htmx:sseClose", (event) => {
    if (event.detail.type === "message") location.reload(); // the run has ended
  });
});
