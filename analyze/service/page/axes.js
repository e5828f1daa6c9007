// Scales, ticks and curves with bands: what the layer map and the persistence curves are drawn with.

import { draw } from "./dom.js";

/** @typedef {{at: number, value: number, low: number | null, high: number | null}} Point a value with its 95% interval */

/** A linear scale: from [a, b] to pixels [p, q]. */
export function linear(a, b, p, q) {
  return (value) => p + ((value - a) / (b - a || 1)) * (q - p);
}

/** Where an offset stands on a logarithmic axis that has a 0, in units of a decade; the transform of analyze/plots.py. */
export function offsetPlace(offset) {
  const start = 0.6 / 0.9;
  return offset <= 1 ? offset * start : start + Math.log10(offset);
}

/** The first and the last place, and those between that keep a distance: the indices of ticks that do not collide. */
export function spaced(places, gap) {
  const kept = [0];
  for (let index = 1; index < places.length - 1; index++) {
    if (places[index] - places[kept.at(-1)] >= gap && places.at(-1) - places[index] >= gap) kept.push(index);
  }
  return places.length > 1 ? [...kept, places.length - 1] : kept;
}

/** Horizontal lines to read values off, with their numbers at the left. */
export function rules(values, y, left, right, written) {
  return values.flatMap((value) => [
    draw("line", { class: "rule", x1: left, x2: right, y1: y(value), y2: y(value) }),
    said("tick", left - 7, y(value) + 4, written(value), "end"),
  ]);
}

/** Numbers and words of a picture, in the middle of a place; `end` puts them before it. */
export function said(kind, x, y, text, anchor = "middle") {
  return draw("text", { class: kind, x, y, "text-anchor": anchor }, text);
}

/** What an axis shows, written from below to above. */
export function upright(text, x, y) {
  return draw("text", { class: "caption", transform: `translate(${x} ${y}) rotate(-90)`, "text-anchor": "middle" }, text);
}

/** Steps of a size between two values, both within a hair. */
export function steps(low, high, size) {
  const first = Math.ceil(low / size - 1e-9);
  return Array.from({ length: Math.floor(high / size + 1e-9) - first + 1 }, (_, index) => (first + index) * size);
}

/**
 * A curve; with a band where `banded`.
 * @param {Point[]} points
 */
export function curve(points, x, y, colour, { banded = true, className = "", dots = true } = {}) {
  const traced = (places) => places.map(([at, value]) => `${x(at).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
  const group = draw("g", { class: `curve ${className}` });
  group.style.setProperty("--colour", colour);
  const bounded = points.filter((point) => point.low !== null && point.high !== null);
  if (banded && bounded.length) {
    const edge = [...bounded.map((point) => [point.at, point.high]), ...bounded.toReversed().map((point) => [point.at, point.low])];
    group.append(draw("polygon", { class: "band", points: traced(edge) }));
  }
  group.append(draw("polyline", { class: "line", points: traced(points.map((point) => [point.at, point.value])) }));
  if (dots) group.append(...points.map((point) => draw("circle", { class: "dot", cx: x(point.at), cy: y(point.value), r: 2.2 })));
  return group;
}

/** A legend of lines: one HTML list entry for each. */
export function keyOf(name, colour, make, className = "") {
  const entry = make("li", {}, make("span", { class: `stroke ${className}` }), name);
  entry.style.setProperty("--colour", colour);
  return entry;
}

/** A share as a percentage. */
export function percent(share) {
  return `${Math.round(share * 100)}%`;
}

/** A value with its interval, such as `0.91 [0.88, 0.93]`. */
export function interval(point, written) {
  return point.low === null ? written(point.value) : `${written(point.value)} [${written(point.low)}, ${written(point.high)}]`;
}
