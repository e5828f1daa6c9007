// Neighbours: of a typed sentence, of a point, or the two ends along a label's direction, as lists of texts.

import { ask, ofRun } from "./api.js";
import { onScheme } from "./colours.js";
import { choose, count, make, partsOf, short } from "./dom.js";
import { panel } from "./panel.js";

const K = 10;
const HINT =
  "A sentence is read by the run's own model, at this site and layer, and the texts whose states are nearest to it are listed and " +
  "ringed. The same for a point that you click; the ends of a direction are the texts that lie farthest along that of a label's probe.";

const EMPTY = "No row fulfils the condition.";
const EMPTY_BUT_IT = "No other row fulfils the condition.";
const METRICS = { cosine: "cosine", euclidean: "distance", dot: "dot product" };
const SCALINGS = { none: "raw", centred: "centred", standardised: "standardised" };

/** @typedef {{text: string, row: number | null, along: string}} Query one of the three; what is "" or null is not asked for */

/**
 * @param {HTMLElement} section
 * @param {{texts: ReturnType<import("./texts.js").texts>, colourOf: (label: string) => string | undefined,
 *   onQuery: (query: Query) => void, onMeasure: (measure: {metric?: string, scaling?: string}) => void,
 *   onMark: (marks: object) => void}} events
 */
export function neighbours(section, { texts, colourOf, onQuery, onMeasure, onMark }) {
  const parts = partsOf(section), own = panel(section);
  let listedOf = ""; // what is listed, so that it is not asked for twice

  /**
   * Ask for the neighbours and list them; without a query, list none.
   * @param {{run: object, site: string, layer: number, where: string, metric: string, scaling: string,
   *   result: import("./scores.js").Result | null, query: Query}} view directions are of the probe of `result`
   */
  async function show(view) {
    const { run, site, layer, where, metric, scaling, result, query } = view, about = aboutOf(view);
    const asked = JSON.stringify([run.run_id, about]);
    recolour();
    parts.metric.value = metric;
    parts.scaling.value = scaling;
    parts.direction.value = query.along;
    if (asked === listedOf) return;
    listedOf = asked;
    parts.text.value = query.text;
    onMark({ rows: [], chosen: query.row, strong: null, place: null });
    if (!about) {
      await own.attempt("", async () => {});
      parts.answers.classList.remove("two");
      list(make("p", { class: "hint" }, HINT));
      delete section.dataset.drawn;
      return;
    }
    const answer = await own.attempt("Looking …", async (signal) => {
      const [found] = await Promise.all([
        ask(ofRun(run.run_id, query.along ? "along" : "neighbours"), { signal, body: about }),
        query.row === null ? null : texts.of(run.run_id, [query.row], signal),
      ]);
      return found;
    });
    if (!answer) {
      if (own.refused()) {
        listedOf = "";
        list();
      }
      return;
    }
    const lists = query.along ? endsOf(query.along, result, answer) : [[heading(view), nearestOf(query, answer)]];
    const rows = lists.flatMap(([, found]) => found);
    texts.keep(run.run_id, rows);
    parts.answers.classList.toggle("two", lists.length > 1);
    const digits = digitsOf(rows.map((one) => one.score));
    const notes = rows.length ? overlap(lists) : [query.row === null ? EMPTY : EMPTY_BUT_IT];
    const written = rows.length ? lists.map(([title, found]) => listOf(title, found, digits)) : [];
    list(...notes.map((note) => make("p", { class: "hint" }, note)), ...written);
    onMark({ rows: rows.map((one) => one.row), chosen: query.row, strong: null, place: query.text ? answer.place : null });
    own.drawn(`${run.run_id} ${site} ${layer}`);
  }

  function heading({ run, metric, scaling, query }) {
    const measured = `Nearest by ${METRICS[metric] ?? metric} of ${SCALINGS[scaling] ?? scaling} states to`;
    if (query.text) return `${measured} “${short(query.text, 120)}”`;
    return `${measured} row ${count(query.row)}: “${short(texts.known(run.run_id, query.row)?.text ?? "", 120)}”`;
  }

  /** List something else; who was in the list with the keyboard stays in it. */
  function list(...children) {
    const inside = parts.answers.contains(document.activeElement);
    parts.answers.replaceChildren(...children);
    parts.answers.scrollTop = 0;
    if (inside) parts.answers.focus();
  }

  /** Give labels the colours that they have in the projection now. */
  function recolour() {
    for (const chip of parts.answers.querySelectorAll(".label")) {
      chip.style.setProperty("--colour", colourOf(chip.dataset.label) ?? "transparent");
    }
  }

  function listOf(title, found, digits) {
    return make("div", {}, make("h3", {}, title), make("ol", {}, ...found.map((one) => entry(one, digits))));
  }

  function entry(one, digits) {
    const label = one.label === undefined || one.label === null ? "" : String(one.label);
    const chip = make("span", { class: "label", "data-label": label }, make("span", { class: "swatch" }), short(label, 18));
    chip.style.setProperty("--colour", colourOf(label) ?? "transparent");
    const score = make("span", { class: "score" }, one.score.toFixed(digits)), text = make("span", { class: "text" }, String(one.text));
    const button = make("button", { type: "button" }, score, chip, text);
    button.dataset.row = String(one.row);
    button.title = `row ${count(one.row)}; click for its own neighbours`;
    for (const event of ["pointerenter", "focus"]) button.addEventListener(event, () => onMark({ strong: one.row }));
    for (const event of ["pointerleave", "blur"]) button.addEventListener(event, () => onMark({ strong: null }));
    button.addEventListener("click", () => onQuery({ text: "", row: one.row, along: "" }));
    return make("li", {}, button);
  }

  parts.form.addEventListener("submit", (event) => {
    event.preventDefault();
    onQuery({ text: parts.text.value.trim(), row: null, along: "" });
  });
  parts.metric.addEventListener("change", () => onMeasure({ metric: parts.metric.value }));
  parts.scaling.addEventListener("change", () => onMeasure({ scaling: parts.scaling.value }));
  parts.direction.addEventListener("change", () => onQuery({ text: "", row: null, along: parts.direction.value }));

  onScheme(recolour);

  return {
    show,
    /** @param {string[]} labels that `result` has a direction for */
    directions(labels, chosen, result) {
      const none = ["", labels.length ? "a direction" : result?.probe.kind === "mlp" ? "none of an MLP" : "no probes"];
      choose(parts.direction, [none, ...labels.map((label) => [label, short(label, 24)])], chosen);
    },
  };
}

/** What to ask the server, or null for nothing. */
function aboutOf({ site, layer, where, metric, scaling, result, query: { text, row, along } }) {
  const condition = where || null;
  if (along) return { site, layer, label: along, ...result.probe, among: condition, k: K };
  if (!text && row === null) return null;
  const about = text ? { text, k: K } : { row, k: K + 1 }; // a row is its own nearest
  return { site, layer, metric, scaling, where: condition, ...about };
}

function nearestOf({ row }, answer) {
  return answer.neighbours.filter((one) => one.row !== row).slice(0, K);
}

function endsOf(label, result, answer) {
  const name = `“${short(label, 30)}”, probe ${result.name}`;
  return [[`Most ${name}`, answer.top], [`Least ${name}`, answer.bottom]];
}

/** What to say of lists that have rows in common. */
function overlap([[, first], [, second] = [, []]]) {
  const both = first.filter(({ row }) => second.some((other) => other.row === row)).length;
  return both ? [`The condition leaves so few rows that ${both} of them stand at both ends.`] : [];
}

/** Decimals of scores: as few as tell them apart, because cosines of raw states may all begin with 0.999. */
function digitsOf(scores) {
  const least = Math.max(...scores.map(Math.abs)) < 10 ? 3 : 1;
  const apart = (digits) => new Set(scores.map((score) => score.toFixed(digits))).size === new Set(scores).size;
  return [least, least + 1, least + 2].find(apart) ?? 6;
}
