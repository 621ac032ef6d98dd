// Jobs side by side: size against what was lost, and a figure of every layer in each of them.

import { call } from "./api.js";
import { atTicks, axis, chart, dots, series, seriesColour, size } from "./charts.js";
import { complain } from "./messages.js";

const QUALITIES = [
  { title: "perplexity", of: (metrics) => metrics.quantized.perplexity },
  { title: "KL per token, nats", of: (metrics) => metrics.quantized.kl },
];
// What the head of the table calls it.
const titleOf = (job) => document.getElementById(`to-${job.id}`)?.textContent ?? job.id;

main().catch(complain);

async function main() {
  const comparison = await call("GET", `/v1/jobs/compare${location.search}`);
  drawPareto(comparison.jobs);
  drawOverlay(comparison);
}

function drawPareto(jobs) {
  const place = document.getElementById("pareto-chart");
  const measured = jobs.filter((job) => job.result?.metrics);
  const quality = QUALITIES.find(({ of }) => measured.length && measured.every((job) => of(job.result.metrics) !== null));
  if (!quality) {
    place.textContent = "These jobs have no measure of quality in common.";
    return;
  }
  const points = measured
    .map((job) => ({ title: titleOf(job), colour: jobs.indexOf(job), bytes: job.result.bytes_after, lost: quality.of(job.result.metrics) }))
    .sort((one, other) => one.bytes - other.bytes);
  chart(place, () => paretoChart(points, quality.title));
}

function paretoChart(points, title) {
  const sizes = points.map((point) => point.bytes);
  const best = [];
  for (const point of points) best.push(Math.min(point.lost, ...best.slice(-1)));
  const isBest = (index) => index === 0 || points[index].lost < best[index - 1];
  const front = points.map((point, index) => (isBest(index) ? point.lost : undefined));
  const margin = 0.1 * (sizes.at(-1) - sizes[0]) || 0.1 * sizes[0];
  const options = {
    height: 300,
    scales: { x: { time: false, range: [sizes[0] - margin, sizes.at(-1) + margin] } },
    axes: [
      axis({ values: (_, ticks) => ticks.map(size) }),
      axis({ size: 64, label: title, values: atTicks }),
    ],
    series: [
      { label: "size", value: (_, bytes) => (bytes ? size(bytes) : "–") },
      series("not beaten at its size", 7, { dash: [5, 4], spanGaps: true }),
      ...points.map(({ title: name, colour }) => series(name, colour, dots(seriesColour(colour)))),
    ],
  };
  const own = points.map((point, place) => points.map((_, index) => (index === place ? point.lost : undefined)));
  return { options, data: [sizes, front, ...own] };
}

function drawOverlay({ jobs, layers }) {
  const choice = document.getElementById("overlay-figure");
  const coded = layers.filter((row) => row.layers.some((layer) => layer?.bits));
  const draw = chart(document.getElementById("overlay-chart"), () => overlayChart(jobs, coded, choice.value));
  choice.addEventListener("change", draw);
}

function overlayChart(jobs, layers, figure) {
  const options = {
    height: 300,
    scales: { x: { time: false } },
    axes: [axis({ values: (_, ticks) => ticks.map((tick) => (Number.isInteger(tick) ? tick + 1 : "")) }), axis({ size: 50 })],
    series: [
      { label: "layer", value: (_, place) => layers[place]?.name ?? "–" },
      ...jobs.map((job, index) => series(titleOf(job), index)),
    ],
  };
  const lines = jobs.map((_, index) => layers.map((row) => row.layers[index]?.[figure] ?? null));
  return { options, data: [layers.map((_, place) => place), ...lines] };
}
