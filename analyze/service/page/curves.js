// Persistence: AUROC against the number of tokens since the utterance, for every reader or for every label.

import { curve, interval, keyOf, linear, offsetPlace, rules, said, spaced, steps, upright } from "./axes.js";
import { classColours, onScheme, readerColour } from "./colours.js";
import { choose, command, draw, make, partsOf, short } from "./dom.js";
import { panel } from "./panel.js";

const LEFT = 54, RIGHT = 14, FOOT = 36, TOP = 8;
const CHANCE = 0.5;
const READERS = {
  refit: "refit at each offset",
  "offset-0": "fitted at offset 0",
  "offset-aware": "one probe for all offsets",
  words: "the reply's words",
  shuffled: "shuffled labels",
};
const EVERY = "\n"; // stands for every label; no label can be called so
const MEAN = "all";

/** @param {HTMLElement} section */
export function persistenceCurves(section) {
  const parts = partsOf(section), own = panel(section);
  let shown = null; // {run, rows, measured}
  const key = make("ul", { class: "key" });
  parts.plot.before(key);

  /** @param {object} run @param {object[] | null} given as `/persistence` gives them; null where that was refused */
  function show(run, given) {
    const rows = given ?? [];
    shown = { run, rows };
    const measure = command(`affectome persistence STORE ${run.run_id}`);
    if (given) own.say(...(rows.length || !run.complete ? [] : ["Not measured yet: run ", measure, " and reload."]));
    const measured = namesOf(rows);
    choose(parts.measured, [...measured].map(([key, name]) => [key, short(name, 44)]), [...measured.keys()][0] ?? "");
    const labels = [...new Set(rows.map((row) => row.label))].filter((label) => label !== MEAN);
    const together = rows.length ? [[MEAN, "mean over labels"], [EVERY, "every label"]] : [];
    choose(parts.label, [...together, ...labels.map((label) => [label, short(label, 24)])], MEAN);
    redraw();
  }

  function redraw() {
    if (!shown) return;
    const { run, rows } = shown;
    const chosen = rows.filter((row) => keyOfRow(row) === parts.measured.value);
    const series = seriesOf(chosen, parts.label.value);
    const size = { width: Math.max(parts.plot.clientWidth, 260), height: Math.max(parts.plot.clientHeight, 150) };
    const svg = draw("svg", { width: size.width, height: size.height, role: "img", "aria-label": spoken(series) });
    const after = chosen[0]?.site.endsWith(".reply") ? "prompt" : "text";
    if (series.length) svg.append(...axes(series, size, `tokens after the last of the ${after}`));
    parts.plot.replaceChildren(svg);
    key.replaceChildren(...series.map((one) => keyOf(`${one.name}${one.half}`, one.colour, make, one.className)));
    own.drawn(`${run.run_id} ${parts.measured.value}`.trim());
  }

  function axes(series, size, across) {
    const offsets = [...new Set(series.flatMap((one) => one.points.map((point) => point.at)))].sort((one, other) => one - other);
    const lowest = Math.min(...series.flatMap((one) => one.points.map((point) => point.value)));
    const floor = Math.max(0, Math.min(0.4, Math.floor(lowest * 10) / 10));
    const bottom = size.height - FOOT, right = size.width - RIGHT;
    const place = linear(offsetPlace(offsets[0]), offsetPlace(offsets.at(-1)), LEFT + 8, right - 8);
    const x = (offset) => place(offsetPlace(offset)), y = linear(floor, 1, bottom, TOP);
    const ticks = spaced(offsets.map(x), 26).map((index) =>
      said("tick", x(offsets[index]), bottom + 15, String(offsets[index])));
    return [
      ...rules(steps(floor, 1, 0.1), y, LEFT, right, (value) => value.toFixed(1)),
      upright("AUROC, one against the rest", 12, (bottom + TOP) / 2),
      draw("line", { class: "chance", x1: LEFT, x2: right, y1: y(CHANCE), y2: y(CHANCE) }),
      ...ticks,
      said("caption", (LEFT + right) / 2, size.height - 4, across),
      ...series.map((one) => withTitles(curve(one.points, x, y, one.colour, one), one)),
    ];
  }

  /** Each dot says its numbers when the pointer rests on it. */
  function withTitles(group, one) {
    group.querySelectorAll("circle").forEach((dot, index) => {
      const point = one.points[index];
      const area = interval(point, (value) => value.toFixed(2));
      dot.append(draw("title", {}, `${one.name}, ${point.at} tokens: AUROC ${area}, ${point.n} texts`));
    });
    return group;
  }

  parts.measured.addEventListener("change", redraw);
  parts.label.addEventListener("change", redraw);
  new ResizeObserver(() => redraw()).observe(parts.plot);
  onScheme(redraw);
  return { show, attempt: own.attempt };
}

const MEASURED = ["site", "layer", "kind", "continued_run_id"];

function keyOfRow(row) {
  return MEASURED.map((name) => row[name]).join(" ");
}

/** What to call each measurement: its layer, and of the rest what tells it from the others. */
function namesOf(rows) {
  const differs = MEASURED.filter((name) => name === "layer" || new Set(rows.map((row) => row[name])).size > 1);
  const shown = (row) => ({ ...row, layer: `layer ${row.layer}`, continued_run_id: row.continued_run_id.slice(0, 8) });
  return new Map(rows.map((row) => [keyOfRow(row), differs.map((part) => shown(row)[part]).join(", ")]));
}

/** What is drawn: the readers of one label or of their mean, or the first reader of every label. */
function seriesOf(rows, label) {
  const labels = [...new Set(rows.map((row) => row.label))].filter((one) => one !== MEAN);
  if (label === EVERY) {
    const colours = classColours(labels);
    return labels.map((one, index) => seriesFrom(rows, "refit", one, { name: one, colour: colours[index], banded: false }));
  }
  const readers = Object.keys(READERS).filter((reader) => rows.some((row) => row.reader === reader && row.label === label));
  return readers.map((reader) => {
    const className = { "offset-0": "dashed", shuffled: "dashed", words: "dotted" }[reader] ?? "";
    const look = { name: READERS[reader], colour: readerColour(reader), banded: reader !== "offset-aware", className };
    return seriesFrom(rows, reader, label, look);
  });
}

function seriesFrom(rows, reader, label, look) {
  const own = rows.filter((row) => row.reader === reader && row.label === label);
  const points = own
    .filter((row) => row.metric === "auroc" && row.value !== null)
    .map((row) => ({ at: row.offset, value: row.value, low: row.low, high: row.high, n: row.n }))
    .sort((one, other) => one.at - other.at);
  const half = own.find((row) => row.metric === "half_life_tokens");
  return { ...look, points, half: halfLife(half, points, reader) };
}

/** `, half-life 49`; `> 400` where it has not halved, nothing where there was nothing to halve. */
function halfLife(row, points, reader) {
  if (!row || !points.length || reader === "shuffled" || (points[0].low ?? 0) <= CHANCE) return "";
  if (row.value === null) return `, half-life > ${points.at(-1).at}`;
  return `, half-life ${row.value < 10 ? row.value.toFixed(1) : Math.round(row.value)}`;
}

/** The picture in words, for who cannot see it. */
function spoken(series) {
  const ends = series.filter((one) => one.points.length).map((one) => {
    const [first, last] = [one.points[0], one.points.at(-1)];
    return `${one.name}: ${first.value.toFixed(2)} at ${first.at} tokens, ${last.value.toFixed(2)} at ${last.at}${one.half}`;
  });
  return ends.length ? `AUROC against offset. ${ends.join(". ")}` : "No curves";
}
