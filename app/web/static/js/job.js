// One job: what it says while it runs, and what its layers and losses look like.

import { call, rows } from "./api.js";
import { atTicks, axis, chart, series } from "./charts.js";
import { drawGrid } from "./grid.js";
import { complain } from "./messages.js";
import { makeSortable } from "./sorting.js";

const LOSS_POINTS = 400;
const LOSS_EVERY_MS = 3000;
const FIGURES = [
  { name: "sqnr_db", title: "SQNR, dB" },
  { name: "exponent", title: "exponent" },
  { name: "bits", title: "bits" },
];
const state = () => document.getElementById("live").dataset;
let reading = Promise.resolve();

if (state().terminal !== "true") follow();
drawLoss().catch(complain);
drawLayers().catch(complain);

// Phases and ends are told by the page itself, asked for again; the figures in between come with the events.
function follow() {
  const stream = new EventSource(`/v1/jobs/${state().job}/events/stream?after=${state().after}`);
  stream.addEventListener("progress", (event) => showProgress(JSON.parse(event.data).data));
  for (const type of ["status", "phase", "waiting", "routed", "changed", "published"]) {
    stream.addEventListener(type, () => window.htmx?.trigger(document.getElementById("live"), "refresh"));
  }
  for (const type of ["status", "phase", "waiting", "routed", "log", "published"]) stream.addEventListener(type, moreLog);
  stream.addEventListener("status", (event) => {
    if (!["succeeded", "failed", "cancelled"].includes(JSON.parse(event.data).data.to)) return;
    stream.close();
    location.reload(); // layers, files and curves are there now
  });
}

function showProgress({ fraction, current, total, unit, eta_seconds: eta }) {
  const bar = document.querySelector("#progress progress");
  if (!bar) return;
  bar.value = fraction;
  put("percent", `${Math.round(100 * fraction)} %`);
  put("count", total ? `${current} of ${total} ${unit}` : unit);
  put("eta", eta === null ? "" : `· ${Math.round(eta)} s left`);
}

function put(name, text) {
  const place = document.querySelector(`[data-live="${name}"]`);
  if (place) place.textContent = text;
}

// The log only grows: ask for what comes after the bytes that are here, and the last of those, so that there always is
// an answer. One request at a time.
function moreLog() {
  reading = reading.then(readLog).catch(() => {});
}

async function readLog() {
  const place = document.getElementById("log-lines");
  const known = Number(place.dataset.bytes);
  const from = Math.max(known - 1, 0);
  const response = await fetch(place.dataset.log, { headers: { Range: `bytes=${from}-` } });
  if (response.status !== 206) return;
  const added = (await response.arrayBuffer()).slice(known - from);
  place.dataset.bytes = known + added.byteLength;
  const atEnd = place.scrollHeight - place.scrollTop - place.clientHeight < 40;
  place.append(new TextDecoder().decode(added));
  if (atEnd) place.scrollTop = place.scrollHeight;
}

async function drawLoss() {
  const place = document.getElementById("loss-chart");
  if (!place) return;
  let curves = await readCurves(place);
  const draw = chart(place, () => lossChart(curves));
  if (state().terminal === "true") return;
  setInterval(async () => {
    if (document.hidden) return;
    curves = await readCurves(place);
    draw();
  }, LOSS_EVERY_MS);
}

// A curve of one point is a figure, and stands in the table.
async function readCurves(place) {
  const { data } = await call("GET", `${place.dataset.metrics}?max_points=${LOSS_POINTS}`);
  return data.filter((curve) => curve.count > 1);
}

function lossChart(curves) {
  const steps = [...new Set(curves.flatMap((curve) => curve.points.map((point) => point.step)))].sort((a, b) => a - b);
  const lines = curves.map((curve) => {
    const values = new Map(curve.points.map((point) => [point.step, point.value]));
    return steps.map((step) => values.get(step)); // undefined: not measured there, null: no number
  });
  const positive = lines.flat().every((value) => value === undefined || value === null || value > 0);
  const options = {
    height: 260,
    scales: { x: { time: false }, y: positive ? { distr: 3 } : {} },
    axes: [axis(), axis({ size: 60, values: atTicks })],
    series: [
      { label: "step" },
      ...curves.map((curve, index) => series(curve.name.replace(/^loss\//, ""), index, { spanGaps: true })),
    ],
  };
  return { options, data: [steps, ...lines] };
}

async function drawLayers() {
  const place = document.getElementById("layer-charts");
  if (!place) return;
  const table = document.getElementById("layer-table");
  makeSortable(table);
  const layers = [];
  for await (const layer of rows(`${place.dataset.layers}?limit=200`)) layers.push(layer);
  const coded = layers.filter((layer) => layer.bits);
  for (const [index, figure] of FIGURES.entries()) {
    const part = document.createElement("div");
    part.className = "chart strip";
    part.setAttribute("role", "img");
    part.setAttribute("aria-label", `${figure.title} of each layer; the table below has the figures`);
    place.append(part);
    chart(part, () => stripChart(coded, figure, index));
  }
  makeSelectable(table, new Map(layers.map((layer) => [layer.name, layer])));
}

function stripChart(layers, { name, title }, index) {
  const isLast = index === FIGURES.length - 1;
  const options = {
    height: isLast ? 130 : 110,
    cursor: { sync: { key: "layers" } },
    scales: { x: { time: false }, y: name === "bits" ? { range: [0, 9] } : {} },
    axes: [
      axis({ values: (_, ticks) => ticks.map((tick) => (isLast && Number.isInteger(tick) ? tick + 1 : "")), size: isLast ? 30 : 10 }),
      axis({ size: 50, values: atTicks }),
    ],
    series: [
      { label: "layer", value: (_, place) => layers[place]?.name ?? "–" },
      series(title, index, { points: { show: layers.length < 120, size: 5 } }),
    ],
  };
  return { options, data: [layers.map((_, place) => place), layers.map((layer) => layer[name])] };
}

// A row is chosen by a click, or by Enter on its name.
function makeSelectable(table, layers) {
  for (const row of table.tBodies[0].rows) {
    const layer = layers.get(row.dataset.layer);
    if (!layer?.bits) continue;
    const name = row.cells[0].firstElementChild;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "link";
    button.append(name.cloneNode(true));
    name.replaceWith(button);
    button.addEventListener("click", (event) => {
      table.querySelector("[aria-current]")?.removeAttribute("aria-current");
      row.setAttribute("aria-current", "true");
      showGrid(layer).catch(complain);
      if (event.isTrusted) document.getElementById("grid-chart").scrollIntoView({ block: "nearest" });
    });
  }
  table.querySelector("button.link")?.click();
}

// The levels at once; the histogram, which pages of layers leave out, when it has come and is still wanted.
async function showGrid(layer) {
  const place = document.getElementById("grid-chart");
  place.dataset.layer = layer.name;
  drawGrid(place, layer);
  if (layer.histogram !== null) return;
  const query = new URLSearchParams({ name: layer.name, include: "histogram" });
  const answer = await call("GET", `${document.getElementById("layer-charts").dataset.layers}?${query}`);
  layer.histogram = answer.data[0]?.histogram ?? [];
  if (place.dataset.layer === layer.name) drawGrid(place, layer);
}
