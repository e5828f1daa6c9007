// The rows of scores sorted into results: one probe each, with what the layer map draws of it.

const METRICS = {
  accuracy: { says: "accuracy, unseen texts", control: "shuffled_accuracy", low: 0, percent: true },
  auroc: { says: "mean AUROC", control: "shuffled_auroc", low: 0.4, percent: false },
  r2: { says: "R², unseen texts", control: "shuffled_r2", low: 0, percent: false },
};

/**
 * @typedef {object} Result one probe, at any number of sites
 * @property {string} name its kind, with what is not as usual: the column, and how it was fitted
 * @property {{column: string, kind: string, balance: string, strength: number | null, solver: string}} probe which probe, in the
 *   server's words
 * @property {{name: string, chance: number | null, says: string, control: string, low: number, percent: boolean}} metric the score
 *   that stands for it: accuracy, or what a probe of lists or of numbers has instead
 * @property {Map<string, import("./axes.js").Point[]>} points by site, metric and label, so that what follows the pointer need not
 *   go through every row
 * @property {Map<string, string[]>} labels of each site: those that have an AUROC of their own there
 */

/**
 * A probe that is kept for some layers and for all of them has its rows once.
 * @param {object[]} rows as `/scores` gives them
 * @returns {Result[]}
 */
export function resultsOf(rows) {
  return [...Map.groupBy(rows, nameOf)].map(([name, own]) => {
    const { label_column: column, kind, balance, strength, solver } = own[0];
    return { name, probe: { column, kind, balance, strength, solver }, metric: metricOf(own), ...sorted(own) };
  });
}

function nameOf(row) {
  const column = row.label_column === "label" ? "" : ` of ${row.label_column}`;
  const balance = row.balance === "none" ? "" : `, balance ${row.balance}`;
  const strength = row.strength === null ? "" : `, strength ${row.strength}`;
  const solver = row.solver === "affectome" ? "" : `, by ${row.solver}`;
  return row.kind + column + balance + strength + solver;
}

function metricOf(rows) {
  const has = (metric) => rows.some((row) => row.metric === metric && row.label === null);
  const name = Object.keys(METRICS).find(has) ?? "accuracy";
  const chances = { accuracy: rows.find((row) => row.metric === name)?.chance ?? null, auroc: 0.5, r2: 0 };
  return { name, chance: chances[name], ...METRICS[name] };
}

function sorted(rows) {
  const points = new Map(), labels = new Map();
  for (const [key, same] of Map.groupBy(rows, (row) => keyOf(row.site, row.metric, row.label))) {
    const layers = new Map(same.toReversed().filter((row) => row.value !== null).map((row) => [row.layer, row]));
    const found = [...layers.values()].map((row) => ({ at: row.layer, value: row.value, low: row.low, high: row.high }));
    points.set(key, found.sort((one, other) => one.at - other.at));
    const { site, metric, label } = same[0];
    if (metric === "auroc" && label !== null) labels.set(site, [...(labels.get(site) ?? []), label]);
  }
  return { points, labels };
}

function keyOf(site, metric, label) {
  return JSON.stringify([site, metric, label]);
}

/**
 * A score by layer.
 * @returns {import("./axes.js").Point[]} `at` is the layer, ascending
 */
export function byLayer(result, site, metric, label = null) {
  return result.points.get(keyOf(site, metric, label)) ?? [];
}

/** The labels that have an AUROC of their own at a site. */
export function labelsOf(result, site) {
  return result.labels.get(site) ?? [];
}

/** What a probe at a site has a direction for: each of its labels, or the column of its numbers; an MLP has none. */
export function directionsOf(result, site) {
  if (result.probe.kind === "mlp" || !byLayer(result, site, result.metric.name).length) return [];
  return result.metric.name === "r2" ? [result.probe.column] : labelsOf(result, site);
}

/** The result to show where nobody says which: of the column `label`, of the usual kind, fitted as usual, of most layers. */
export function usualOf(results, site) {
  const layers = (result) => byLayer(result, site, result.metric.name).length;
  const ranked = (result) => [
    result.probe.column === "label",
    result.probe.kind === (result.metric.name === "r2" ? "ridge" : "linear"),
    result.probe.balance === "none" && result.probe.strength === null && result.probe.solver === "affectome",
    layers(result),
  ].map(Number);
  const differ = (one, other) => ranked(other).map((rank, index) => rank - ranked(one)[index]).find((apart) => apart) ?? 0;
  return results.filter(layers).toSorted(differ)[0] ?? results[0] ?? null;
}
