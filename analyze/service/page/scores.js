// The rows of scores sorted into results: one probe each, with what the layer map draws of it.

const METRICS = {
  accuracy: { says: "accuracy, unseen texts", control: "shuffled_accuracy", low: 0, percent: true },
  auroc: { says: "mean AUROC", control: "shuffled_auroc", low: 0.4, percent: false },
  r2: { says: "R², unseen texts", control: "shuffled_r2", low: 0, percent: false },
};

/**
 * @typedef {object} Result one probe, at any number of sites
 * @property {string} name its kind, with what is not as usual: the column, and how it was fitted
 * @property {string} column what it reads
 * @property {object[]} rows
 */

/**
 * A probe that is kept for some layers and for all of them has its rows once.
 * @param {object[]} rows as `/scores` gives them
 * @returns {Result[]}
 */
export function resultsOf(rows) {
  const results = new Map();
  for (const row of rows) {
    const name = nameOf(row);
    const result = results.get(name) ?? { name, column: row.label_column, rows: [], seen: new Set() };
    results.set(name, result);
    const key = [row.site, row.layer, row.metric, row.label].join("\n");
    if (!result.seen.has(key)) result.rows.push(row);
    result.seen.add(key);
  }
  return [...results.values()];
}

function nameOf(row) {
  const column = row.label_column === "label" ? "" : ` of ${row.label_column}`;
  const balance = row.balance === "none" ? "" : `, balance ${row.balance}`;
  const strength = row.strength === null ? "" : `, strength ${row.strength}`;
  const solver = row.solver === "affectome" ? "" : `, by ${row.solver}`;
  return row.kind + column + balance + strength + solver;
}

/** The score that stands for a result: accuracy, or what a probe of lists or of numbers has instead. */
export function metricOf(result) {
  const has = (metric) => result.rows.some((row) => row.metric === metric && row.label === null);
  const name = Object.keys(METRICS).find(has) ?? "accuracy";
  const chances = { accuracy: result.rows.find((row) => row.metric === name)?.chance ?? null, auroc: 0.5, r2: 0 };
  return { name, chance: chances[name], ...METRICS[name] };
}

/**
 * A score by layer.
 * @returns {import("./axes.js").Point[]} `at` is the layer, ascending
 */
export function byLayer(result, site, metric, label = null) {
  return result.rows
    .filter((row) => row.site === site && row.metric === metric && row.label === label && row.value !== null)
    .map((row) => ({ at: row.layer, value: row.value, low: row.low, high: row.high }))
    .sort((one, other) => one.at - other.at);
}

/** The labels that have an AUROC of their own at a site. */
export function labelsOf(result, site) {
  const found = result.rows.filter((row) => row.site === site && row.metric === "auroc" && row.label !== null);
  return [...new Set(found.map((row) => row.label))];
}
