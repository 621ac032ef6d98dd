// The power grid of a layer: where its levels lie between -1 and 1, and how its weights spread over them.

const NAMESPACE = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT, LEFT, BOTTOM] = [480, 220, 16, 30];

// As nupes_core/grid.py has them: codes to evenly spaced places, which the exponent then bends.
const BASES = {
  signed: (half) => steps(-half, half - 1).map((code) => code / half),
  midrise: (half) => steps(-half, half - 1).map((code) => (code + 0.5) / (half - 0.5)),
  paper: (half) => steps(1 - half, half - 1).map((code) => code / (half - 1)),
  IQ4_NL: () => [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113].map((level) => level / 127),
};
for (const layout of ["Q3_K", "Q6_K"]) BASES[layout] = BASES.signed;
for (const layout of ["Q2_K", "Q4_K", "Q5_K"]) BASES[layout] = BASES.midrise; // around the middle of their range
const steps = (first, last) => Array.from({ length: last - first + 1 }, (_, index) => first + index);

/** Levels of a grid, ascending, the largest of magnitude 1. */
export function levels(layout, bits, exponent) {
  return BASES[layout](2 ** (bits - 1)).map((base) => Math.sign(base) * Math.abs(base) ** (1 / exponent));
}

/** Draw the levels of a layer, over the histogram of its weights where the service has one. */
export function drawGrid(place, layer) {
  place.hidden = false;
  const drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": described(layer) });
  drawing.append(...bars(layer.histogram ?? []), ...ticks(levels(layer.layout, layer.bits, layer.exponent)), ...scale());
  const title = document.createElement("h3");
  title.textContent = described(layer);
  const legend = document.createElement("p");
  legend.className = "quiet";
  legend.textContent = layer.histogram?.length
    ? "Lines: levels. Bars: the layer's weights over the scale of their group."
    : "Lines: levels, over the scale of the group.";
  place.replaceChildren(title, drawing, legend);
}

const described = (layer) =>
  `${layer.name}: ${2 ** layer.bits} levels, exponent ${layer.exponent.toFixed(3)}, layout ${layer.layout}`;
const across = (value) => LEFT + ((value + 1) / 2) * (WIDTH - 2 * LEFT);

function ticks(values) {
  const [top, foot] = [16, HEIGHT - BOTTOM];
  return values.map((value) => svg("line", { class: "level", x1: across(value), x2: across(value), y1: top, y2: foot }));
}

function bars(counts) {
  const highest = Math.max(...counts, 1);
  const width = (WIDTH - 2 * LEFT) / Math.max(counts.length, 1);
  return counts.map((count, index) => {
    const height = ((HEIGHT - BOTTOM - 16) * count) / highest;
    return svg("rect", { class: "bar", x: LEFT + index * width, y: HEIGHT - BOTTOM - height, width, height });
  });
}

function scale() {
  const foot = HEIGHT - BOTTOM;
  const words = [-1, -0.5, 0, 0.5, 1].map((value) => {
    const word = svg("text", { x: across(value), y: foot + 18, "text-anchor": "middle" });
    word.textContent = value;
    return word;
  });
  return [svg("line", { class: "axis", x1: LEFT, x2: WIDTH - LEFT, y1: foot, y2: foot }), ...words];
}

function svg(name, attributes) {
  const element = document.createElementNS(NAMESPACE, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}
