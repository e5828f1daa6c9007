// Neighbours: of a typed sentence, of a point, or the two ends along a label's direction, as lists of texts.

import { ask, ofRun } from "./api.js";
import { choose, count, make, partsOf, short } from "./dom.js";
import { panel } from "./panel.js";

const K = 10;
const HINT =
  "A sentence is read by the run's own model, at this site and layer, and the texts whose states are nearest to it are listed and " +
  "ringed. The same for a point that you click; the ends of a direction are the texts that lie farthest along that of a label's probe.";

/** @typedef {{text: string, row: number | null, along: string}} Query one of the three; what is "" or null is not asked for */

/**
 * @param {HTMLElement} section
 * @param {{texts: ReturnType<import("./texts.js").texts>, colourOf: (label: string) => string | undefined,
 *   onQuery: (query: Query) => void, onMetric: (metric: string) => void, onMark: (marks: object) => void}} events
 */
export function neighbours(section, { texts, colourOf, onQuery, onMetric, onMark }) {
  const parts = partsOf(section), own = panel(section);
  let listedOf = ""; // what is listed, so that it is not asked for twice

  /**
   * Ask for the neighbours and list them; without a query, list none.
   * @param {{run: object, site: string, layer: number, where: string, column: string, metric: string, query: Query}} view the ends
   *   of a direction are among all rows, whatever `where` says; `column` is what its probe reads
   */
  async function show(view) {
    const { run, site, layer, where, column, metric, query } = view;
    const asked = JSON.stringify([run.run_id, site, layer, where, column, metric, query]);
    if (asked === listedOf) return;
    listedOf = asked;
    parts.text.value = query.text;
    parts.metric.value = metric;
    parts.direction.value = query.along;
    onMark({ rows: [], chosen: query.row, strong: null, place: null });
    if (!query.text && query.row === null && !query.along) {
      await own.attempt("", async () => {});
      parts.answers.classList.remove("two");
      parts.answers.replaceChildren(make("p", { class: "hint" }, HINT));
      delete section.dataset.drawn;
      return;
    }
    const answer = await own.attempt("Looking …", async (signal) => {
      if (query.along) return ask(ofRun(run.run_id, "along"), { signal, body: { site, layer, k: K, label: query.along, column } });
      const about = query.text ? { text: query.text, k: K } : { row: query.row, k: K + 1 }; // a row is its own nearest
      const body = { site, layer, metric, where: where || null, ...about };
      const [found] = await Promise.all([
        ask(ofRun(run.run_id, "neighbours"), { signal, body }),
        query.row === null ? null : texts.of(run.run_id, [query.row], signal),
      ]);
      return { ...found, neighbours: found.neighbours.filter((one) => one.row !== query.row).slice(0, K) };
    });
    if (!answer) {
      if (own.refused()) {
        listedOf = "";
        parts.answers.replaceChildren();
      }
      return;
    }
    const lists = query.along
      ? [[`Most “${short(query.along, 30)}”`, answer.top], [`Least “${short(query.along, 30)}”`, answer.bottom]]
      : [[heading(run, query), answer.neighbours]];
    const rows = lists.flatMap(([, found]) => found);
    texts.keep(run.run_id, rows);
    parts.answers.classList.toggle("two", lists.length > 1);
    const digits = digitsOf(rows.map((one) => one.score));
    parts.answers.replaceChildren(...lists.map(([title, found]) => listOf(title, found, digits)));
    onMark({ rows: rows.map((one) => one.row), chosen: query.row, strong: null, place: query.text ? answer.place : null });
    own.drawn(`${run.run_id} ${site} ${layer}`);
  }

  function heading(run, query) {
    if (query.text) return `Nearest to “${short(query.text, 120)}”`;
    return `Nearest to row ${count(query.row)}: “${short(texts.known(run.run_id, query.row)?.text ?? "", 120)}”`;
  }

  function listOf(title, found, digits) {
    return make("div", {}, make("h3", {}, title), make("ol", {}, ...found.map((one) => entry(one, digits))));
  }

  function entry(one, digits) {
    const label = one.label === undefined || one.label === null ? "" : String(one.label);
    const chip = make("span", { class: "label" }, make("span", { class: "swatch" }), short(label, 18));
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
  parts.metric.addEventListener("change", () => onMetric(parts.metric.value));
  parts.direction.addEventListener("change", () => onQuery({ text: "", row: null, along: parts.direction.value }));

  return {
    show,
    /** @param {string[]} labels that have a kept probe, and so a direction */
    directions(labels, chosen) {
      const none = ["", labels.length ? "a direction" : "no probes"];
      choose(parts.direction, [none, ...labels.map((label) => [label, short(label, 24)])], chosen);
    },
  };
}

/** Decimals of scores: as few as tell them apart, because cosines of raw states may all begin with 0.999. */
function digitsOf(scores) {
  const least = Math.max(...scores.map(Math.abs)) < 10 ? 3 : 1;
  const apart = (digits) => new Set(scores.map((score) => score.toFixed(digits))).size === new Set(scores).size;
  return [least, least + 1, least + 2].find(apart) ?? 6;
}
