// The page of `affectome serve`: which run, site, layer and rows are looked at, and the four panels that show them.
//
// What is looked at is one object, `state`, kept in the address. A panel that is used changes it through `go`, which asks again
// for what depends on the change; panels know nothing of each other.

import { ask, ofRun, oneAtATime, Refusal } from "./api.js";
import { persistenceCurves } from "./curves.js";
import { choose, command, count, make, short } from "./dom.js";
import { layerMap } from "./layer_map.js";
import { neighbours } from "./neighbours.js";
import { projection } from "./projection.js";
import { byLayer, directionsOf, resultsOf, usualOf } from "./scores.js";
import { read, written } from "./state.js";
import { texts } from "./texts.js";

const MISSING =
  "This run is not complete: some of its shards are missing, so its states cannot be shown. Launch its extraction again, and it " +
  "goes on where it was.";
const WORDS = ["string", "large_string", "bool"];
const WHOLE = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"];
const MAKE = "affectome extract --corpus builtin --store STORE";
const element = (id) => document.getElementById(id);
const kept = texts();
const opening = oneAtATime();
let state = read(location.hash);
let runs = [];
let problems = []; // a sentence for each run of the store that cannot be read
let unknown = ""; // a sentence about a run that the address named and the store has not
let opened = null; // {run, results, scored, columns} of the run that is shown; `scored` is false where its scores are refused

const map = layerMap(element("map"), { onLayer: (layer) => go({ layer }), onResult: (probe) => go({ probe }) });
const curves = persistenceCurves(element("curves"));
const plane = projection(element("projection"), {
  texts: kept,
  onPick: (row) => go({ row, text: "", along: "" }),
  onHide: (hide) => go({ hide }),
  onColour: (colour) => go({ colour, hide: [] }),
  onOffset: (at) => go({ at }),
});
const near = neighbours(element("neighbours"), {
  texts: kept,
  colourOf: plane.colourOf,
  onQuery: (query) => go(query),
  onMeasure: (measure) => go(measure),
  onMark: plane.mark,
});

/** Look at something else. */
async function go(changes) {
  const before = state;
  if (unknown && opened) tell(opened.run);
  state = { ...state, ...changes };
  history.replaceState(null, "", written(state));
  const changed = (...names) => names.some((name) => state[name] !== before[name]);
  if (changed("run")) return open();
  if (opened?.run.run_id !== state.run) return undefined; // it is being read; what is chosen meanwhile holds once it is
  if (changed("site", "probe")) settle();
  else if (changed("layer")) map.select(state.layer);
  if (changed("probe", "site")) showMap();
  if (changed("site", "layer", "at", "where", "colour") && !(await showPlane())) return undefined;
  return showNeighbours();
}

/** Read the run that the state names, or the first that has something to show. */
async function open() {
  const run = runs.find((one) => state.run && one.run_id.startsWith(state.run)) ?? (state.run ? null : firstOf(runs));
  if (!run) {
    notice(noRun(state.run));
    return;
  }
  element("run").value = run.run_id;
  tell(run);
  writeFacts(run);
  const found = await opening(async (signal) => {
    const [scores, persistence, sample] = await Promise.all([
      map.attempt("Reading scores …", () => ask(ofRun(run.run_id, "scores"), { signal })),
      curves.attempt("Reading curves …", () => ask(ofRun(run.run_id, "persistence"), { signal })),
      ask(ofRun(run.run_id, "utterances", { limit: 0 }), { signal }).catch(refusedAs({ columns: [] })),
    ]);
    const results = resultsOf(scores?.rows ?? []);
    return { run, results, scored: scores !== undefined, persistence, columns: columnsOf(sample.columns) };
  });
  if (!found) return;
  opened = found;
  settle();
  curves.show(run, found.persistence?.rows ?? null);
  showMap();
  if (await showPlane()) await showNeighbours();
}

/** Choices that the state leaves open, or names as they are not, become what there is. */
function settle() {
  const { run, results, columns } = opened;
  const site = run.sites.find((one) => one.site === state.site) ?? run.sites.find(isPooled) ?? run.sites[0];
  const result = results.find((one) => one.name === state.probe) ?? usualOf(results, site.site);
  const layer = site.layers.includes(state.layer) ? state.layer : bestLayer(result, site);
  const colour = ["", ...columns].includes(state.colour) ? state.colour : (columns[0] ?? "");
  const at = site.offsets.includes(state.at) ? state.at : (site.offsets[0] ?? null);
  const directions = result ? directionsOf(result, site.site) : [];
  const along = directions.includes(state.along) ? state.along : "";
  state = { ...state, run: run.run_id, site: site.site, layer, at, colour, probe: result?.name ?? "", along };
  history.replaceState(null, "", written(state));
  choose(element("site"), run.sites.map((one) => [one.site, one.site]), site.site);
  element("where").value = state.where;
  plane.hide(state.hide);
  near.directions(directions, along, result);
}

function showMap() {
  const { run, results, scored } = opened, site = siteOf(run);
  const result = results.find((one) => one.name === state.probe) ?? null;
  map.show({ run, site: site.site, sites: run.sites.map((one) => one.site), layers: site.layers, results, scored, result });
  map.select(state.layer);
}

/** Whether the projection, drawn or refused, is that of the state; no other took its place. */
function showPlane() {
  const { run, columns } = opened, { layer, at, where, colour } = state;
  return plane.show({ run, site: siteOf(run), layer, at, where, colour, columns });
}

/** After the projection, so that the server knows the plane in which a sentence is placed. */
function showNeighbours() {
  const { site, layer, where, metric, scaling, text, row, along } = state, { run, results } = opened;
  const result = results.find((one) => one.name === state.probe) ?? null;
  return near.show({ run, site, layer, where, metric, scaling, result, query: { text, row, along } });
}

function siteOf(run) {
  return run.sites.find((one) => one.site === state.site);
}

/** Whether a site holds one state for each row, which is what neighbours are found among. */
function isPooled(site) {
  return !site.every_token && !site.offsets.length;
}

function bestLayer(result, site) {
  const points = result ? byLayer(result, site.site, result.metric.name).filter((point) => site.layers.includes(point.at)) : [];
  const best = points.reduce((one, other) => (other.value > one.value ? other : one), points[0]);
  return best ? best.at : site.layers[Math.floor(site.layers.length / 2)];
}

function firstOf(all) {
  return all.find((run) => run.complete && run.sites.some(isPooled)) ?? all[0] ?? null;
}

/**
 * Columns that can colour points: `label` first, and what holds words or yes and no.
 * @param {{name: string, type: string}[]} columns of the utterances, with types as Arrow calls them
 */
function columnsOf(columns) {
  const holds = (type, kinds) => kinds.some((kind) => type === kind || type.startsWith(`dictionary<values=${kind},`));
  const own = columns.filter(({ name, type }) => !["utterance_id", "text", "label"].includes(name) && holds(type, WORDS));
  const label = columns.filter(({ name, type }) => name === "label" && holds(type, [...WORDS, ...WHOLE]));
  return [...label, ...own].map(({ name }) => name);
}

function refusedAs(value) {
  return (error) => {
    if (error instanceof Refusal) return value;
    throw error;
  };
}

function writeFacts(run) {
  const system = run.system ? ["with a system prompt"] : [];
  const facts = [`template ${short(run.template, 24)}`, ...system, String(run.created).slice(0, 10)];
  element("facts").replaceChildren(`${facts.join(" · ")} · `, make("code", {}, run.run_id));
  document.title = `${run.model} · affectome`;
}

/** Say what is the matter with a run, with the store, and with what was asked for. */
function tell(run, sentence = "") {
  unknown = sentence;
  notice([...(sentence ? [sentence] : []), ...(run.complete ? [] : [MISSING]), ...problems].join(" "));
}

function notice(...sentence) {
  element("notice").replaceChildren(...sentence);
  element("notice").hidden = sentence.join("") === "";
}

function nameOf(run) {
  const marks = [run.complete ? "" : "incomplete", run.imported ? "imported" : ""].filter(Boolean);
  const last = (path) => String(path).split("/").filter(Boolean).at(-1) ?? "";
  const name = [last(run.model), last(run.corpus), `${count(run.n_rows)} rows`, run.run_id.slice(0, 8)].join(" · ");
  return marks.length ? `${name} (${marks.join(", ")})` : name;
}

function noRun(name) {
  return `This store has no run ${name}; choose one of its ${runs.length}.`;
}

/** Show what the address says, unless it names a run that is not there: then stay, and say so. */
function follow() {
  const next = read(location.hash), before = written(state);
  if (!runs.length || before === written(next)) return;
  if (opened && !runs.some((run) => run.run_id.startsWith(next.run))) {
    tell(opened.run, noRun(next.run));
    history.replaceState(null, "", before);
    return;
  }
  state = next;
  open();
}

async function start() {
  element("run").addEventListener("change", () =>
    go({ run: element("run").value, site: "", layer: null, probe: "", row: null, along: "", hide: [] }));
  element("site").addEventListener("change", () => go({ site: element("site").value }));
  element("where-form").addEventListener("submit", (event) => {
    event.preventDefault();
    go({ where: element("where").value.trim(), row: null });
  });
  addEventListener("hashchange", follow);
  try {
    ({ runs, problems } = await ask("api/runs"));
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    notice(error.message);
    return;
  }
  choose(element("run"), runs.map((run) => [run.run_id, nameOf(run)]), "");
  if (runs.length) await open();
  else if (problems.length) notice(problems.join(" "));
  else notice("This store holds no run yet; make one with ", command(MAKE), " and reload.");
}

start();
