// The projection: all rows at one layer in the plane, coloured by label, with their texts on hover.

import { ask, ofRun, oneAtATime, Refusal, settled } from "./api.js";
import { classColours, NONE, onScheme, seriesColour } from "./colours.js";
import { choose, count, make, partsOf, short } from "./dom.js";
import { pointField } from "./field.js";
import { panel } from "./panel.js";

const WAIT_MS = 60; // that the pointer rests on a point, or the view, before texts are asked for
const KEY_MS = 80; // that a layer stays chosen before it is asked for: a key that is held down passes many
const IN_TABLE = 25;
const UNLABELLED = "\n"; // stands for the rows without a value; no class can be called so
const NOTHING = ["", "nothing"]; // to colour by
const WRONG = 400; // status of a refusal that a question without a colour may not meet

/**
 * @param {HTMLElement} section
 * @param {{texts: ReturnType<import("./texts.js").texts>, onPick: (row: number) => void, onHide: (labels: string[]) => void,
 *   onColour: (column: string) => void, onOffset: (offset: number) => void}} events
 */
export function projection(section, { texts, onPick, onHide, onColour, onOffset }) {
  const parts = partsOf(section), own = panel(section);
  const hovering = oneAtATime(), listing = oneAtATime();
  const uncoloured = new Map(); // why a column of a run cannot colour, once that is known
  let shown = null; // what is asked for, with {cloud, classes, entries}
  let hidden = new Set();
  let marked = { rows: [], chosen: null, strong: null, place: null };
  const points = pointField(parts, {
    onHover: hover,
    onPick: (index) => onPick(shown.cloud.row[index]),
    onView: list,
  });

  /**
   * Ask for the points of a layer and draw them; without colours, and with the reason, where the column cannot give any.
   * @param {{run: object, site: object, layer: number, at: number | null, where: string, colour: string, columns: string[]}} view
   * @returns {Promise<boolean>} false where a newer call took its place
   */
  async function show(view) {
    const { run, site: { site, offsets }, layer, at, where } = view;
    const given = await own.attempt(`Reading layer ${layer} …`, async (signal) => {
      if (shown) await settled(signal, KEY_MS);
      return coloured(view, signal);
    });
    parts.grid.hidden = at === null;
    choose(parts.at, offsets.map((offset) => [String(offset), String(offset)]), String(at));
    const plain = uncoloured.get(keyOf(view)), colour = plain === undefined ? view.colour : "";
    choose(parts.colour, [...view.columns.map((column) => [column, short(column, 24)]), NOTHING], colour);
    hover(-1);
    if (!given) {
      const refused = own.refused();
      if (refused) clear();
      return refused;
    }
    const same = shown !== null && ["run", "site", "layer", "at", "where"].every((name) => shown[name] === view[name]);
    if (!same) marked.place = null; // it was a place in another plane
    if (plain !== undefined) own.say(plain);
    const label = given.label.length ? Int16Array.from(given.label) : new Int16Array(given.row.length).fill(-1);
    const cloud = { row: Int32Array.from(given.row), x: Float32Array.from(given.x), y: Float32Array.from(given.y), label };
    shown = { ...view, colour, cloud, classes: given.classes, entries: entriesOf(given.classes, label, colour) };
    const offset = at === null ? "" : `, offset ${at}`;
    const sample = given.n_fitted < given.n ? `, axes from ${count(given.n_fitted)} of them` : "";
    parts.which.textContent = `${site}, layer ${layer}${offset}, ${count(cloud.row.length)} rows${sample}`;
    const [first, second] = given.variance.map((share) => `${(share * 100).toFixed(share < 0.1 ? 1 : 0)}%`);
    parts.across.textContent = `first axis, ${first} of the variance`;
    parts.along.textContent = `second axis, ${second}`;
    recolour();
    writeLegend();
    points.show(cloud, same);
    mark({});
    list();
    own.drawn(`${run.run_id} ${site} ${layer}`);
    return true;
  }

  async function coloured({ run, site: { site }, layer, at, where, colour }, signal) {
    const key = keyOf({ run, colour });
    const points = (by) => ask(ofRun(run.run_id, "projection", { site, layer, at, where, ...by }), { signal });
    if (uncoloured.has(key)) return points({});
    try {
      return await points({ colour });
    } catch (error) {
      if (!colour || error.status !== WRONG) throw error;
      const plain = await points({}).catch(() => null);
      if (!plain) throw error; // it was not for the colour
      uncoloured.set(key, error.message);
      return plain;
    }
  }

  /** Without points: what is on the screen would be another layer's. */
  function clear() {
    shown = null;
    delete section.dataset.drawn;
    for (const part of [parts.which, parts.across, parts.along]) part.textContent = "";
    parts.legend.replaceChildren();
    points.show(null);
  }

  function recolour() {
    if (!shown) return;
    points.colour(colours(), [...shown.classes, UNLABELLED].map((name) => !hidden.has(name)));
  }

  /** Of every class of the run, also of those that no row here has, so that a label keeps its colour; at the end, of none. */
  function colours() {
    return [...classColours(shown.classes), shown.colour ? NONE : seriesColour(0)];
  }

  function writeLegend() {
    const colour = colours();
    parts.legend.replaceChildren(...shown.entries.map(({ key, name, index, number }) => {
      const title = `${name}: click to show or hide it, Shift and click for it alone`;
      const button = make("button", { type: "button", "aria-pressed": String(!hidden.has(key)), title },
        make("span", { class: "swatch" }), short(name, 28), make("span", { class: "number" }, count(number)));
      button.style.setProperty("--colour", colour[index]);
      button.dataset.label = key;
      button.addEventListener("click", (event) => toggle(key, event.shiftKey));
      return button;
    }));
  }

  function toggle(key, alone) {
    const others = shown.entries.map((entry) => entry.key).filter((other) => other !== key);
    const isAlone = !hidden.has(key) && others.every((other) => hidden.has(other));
    if (alone) hidden = new Set(isAlone ? [] : others);
    else if (!hidden.delete(key)) hidden.add(key);
    for (const button of parts.legend.children) button.setAttribute("aria-pressed", String(!hidden.has(button.dataset.label)));
    recolour();
    list();
    onHide([...hidden]);
  }

  /** Show the text of a point beside it; -1 for none. */
  function hover(index, left = 0, top = 0) {
    parts.tip.hidden = index < 0 || !shown;
    if (parts.tip.hidden) {
      hovering(async () => {}); // whatever was asked for is no longer wanted
      return;
    }
    const { run, cloud, classes } = shown, row = cloud.row[index], label = classes[cloud.label[index]];
    const known = texts.known(run.run_id, row);
    tell(row, label, known ? known.text : "…", known?.utterance_id, left, top);
    if (known) return;
    hovering(async (signal) => {
      await settled(signal, WAIT_MS);
      const [found] = await texts.of(run.run_id, [row], signal);
      if (!signal.aborted) tell(row, label, found?.text ?? "", found?.utterance_id, left, top);
    }).catch((error) => {
      if (!(error instanceof Refusal)) throw error;
      tell(row, label, error.message, undefined, left, top);
    });
  }

  function tell(row, label, text, id, left, top) {
    const { tip, field } = parts;
    tip.dataset.row = String(row);
    const what = [`row ${count(row)}`, id, label].filter((part) => part !== undefined).map((part) => short(part, 40));
    tip.replaceChildren(make("p", { class: "what" }, what.join(" · ")), make("p", { class: "text" }, text));
    const { offsetWidth: width, offsetHeight: height } = tip;
    const right = left + 14 + width <= field.clientWidth - 4;
    tip.style.left = `${Math.max(4, right ? left + 14 : left - 14 - width)}px`;
    tip.style.top = `${Math.min(Math.max(4, top - height / 2), Math.max(4, field.clientHeight - height - 4))}px`;
  }

  /** Ring rows, the chosen one and one that is pointed at elsewhere, and put a star where a sentence falls. */
  function mark(changes) {
    Object.assign(marked, changes);
    const rings = marked.rows.map((row) => ({ row, kind: row === marked.strong ? "strong" : "near" }));
    points.mark(marked.chosen === null ? rings : [...rings, { row: marked.chosen, kind: "chosen" }], marked.place);
  }

  /** The table of the points in view, where it is open. */
  async function list() {
    const into = parts.table.querySelector(".scroll");
    if (!parts.table.open || !shown) return;
    const { run, cloud, classes } = shown, indices = points.visible(IN_TABLE);
    const found = await listing(async (signal) => {
      await settled(signal, WAIT_MS);
      return texts.of(run.run_id, indices.map((index) => cloud.row[index]), signal);
    }).catch((error) => {
      if (!(error instanceof Refusal)) throw error;
      into.replaceChildren(make("p", { class: "error" }, error.message));
    });
    if (!found) return;
    const label = new Map(indices.map((index) => [cloud.row[index], classes[cloud.label[index]] ?? ""]));
    const rows = found.map((row) => {
      const button = make("button", { type: "button" }, count(row.row));
      button.addEventListener("click", () => onPick(row.row));
      return make("tr", {}, make("td", {}, button), make("td", {}, label.get(row.row)), make("td", {}, String(row.text)));
    });
    const head = make("tr", {}, ...["row", shown.colour, "text"].map((name) => make("th", { scope: "col" }, name)));
    const caption = make("caption", {}, `The first ${rows.length} in view; a row's number shows its neighbours`);
    into.replaceChildren(make("table", {}, caption, make("thead", {}, head), make("tbody", {}, ...rows)));
  }

  parts.table.addEventListener("toggle", list);
  parts.reset.addEventListener("click", () => points.whole());
  parts.colour.addEventListener("change", () => onColour(parts.colour.value));
  parts.at.addEventListener("change", () => onOffset(Number(parts.at.value)));
  onScheme(() => {
    recolour();
    if (shown) writeLegend();
  });

  return {
    show, mark,
    /** @param {string[]} labels those not drawn */
    hide(labels) {
      hidden = new Set(labels);
      recolour();
      if (shown) writeLegend();
    },
    /** The colour of a row's label as it is drawn now; undefined where points are coloured by something else. */
    colourOf(label) {
      const index = shown?.colour === "label" ? shown.classes.indexOf(label) : -1;
      return index < 0 ? undefined : colours()[index];
    },
  };
}

function keyOf({ run, colour }) {
  return `${run.run_id} ${colour}`;
}

/** What the legend names: the classes that some row here has, and the rows without one. */
function entriesOf(classes, label, colour) {
  const numbers = new Array(classes.length + 1).fill(0);
  for (const code of label) numbers[code < 0 ? classes.length : code]++;
  const rest = { key: UNLABELLED, name: colour ? `no ${colour}` : "all rows", index: classes.length };
  return [...classes.map((name, index) => ({ key: name, name, index })), rest]
    .map((entry) => ({ ...entry, number: numbers[entry.index] }))
    .filter((entry) => entry.number > 0);
}
