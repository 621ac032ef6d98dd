// Charts in the colours of the page, as wide as their place, drawn anew when either changes.

import uPlot from "/static/vendor/uPlot.esm.js";

const AXIS_FONT = "11px ui-monospace, monospace";
const WIDEST_LEGEND = 24;
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const dark = matchMedia("(prefers-color-scheme: dark)");

/** The colour of the series with this number. */
export const seriesColour = (index) => colour(`--series-${(index % 8) + 1}`);

/**
 * Draw a chart into a place and keep it fitting. `make` returns the options of uPlot without width, and the data.
 * Returns a function that draws it anew.
 */
export function chart(place, make) {
  let plot = null;
  const draw = () => {
    plot?.destroy();
    const { options, data } = make();
    const width = Math.max(200, place.clientWidth - 20);
    plot = new uPlot({ width, legend: { show: options.series.length <= WIDEST_LEGEND }, ...options }, data, place);
  };
  draw();
  dark.addEventListener("change", draw);
  new ResizeObserver(() => {
    const width = Math.max(200, place.clientWidth - 20);
    if (plot && plot.width !== width) plot.setSize({ width, height: plot.height });
  }).observe(place);
  return draw;
}

/** An axis in the colours of the page. */
export function axis(options = {}) {
  const line = { stroke: colour("--line"), width: 1 };
  return { stroke: colour("--quiet"), font: AXIS_FONT, labelFont: AXIS_FONT, grid: line, ticks: line, ...options };
}

/** A series of points, or a line, in its colour. */
export function series(label, index, options = {}) {
  return { label, stroke: seriesColour(index), width: 1.5, points: { show: false }, ...options };
}

/** Dots without a line between them. */
export const dots = (fill) => ({ paths: () => null, points: { show: true, size: 10, fill } });

/** At most so many digits that mean something. */
const short = (value) => (value === null || value === undefined ? "–" : Number(value.toPrecision(4)).toString());

/** Words at the ticks of an axis; a logarithmic one leaves some without. */
export const atTicks = (_, ticks) => ticks.map((tick) => (tick === null ? "" : short(tick)));

/** Bytes with a unit. */
export function size(bytes) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let value = bytes;
  while (value >= 999.5 && units.length > 1) {
    value /= 1000;
    units.shift();
  }
  return `${Number(value.toPrecision(3))} ${units[0]}`;
}
