// The rows of scores sorted into results: one probe each, with what the layer map draws of it.

const METRICS = {
  accuracy: { says: "accuracy, unseen texts", control: "shuffled_accuracy", low: 0, percent: true },
  auroc: { says: "mean AUROC", control: "shuffled_auroc", low: 0.4, percent: false },
  r2: { says: "R², unseen texts", control: "shuffled_r2", low: 0, percent: false },
};

/**
 * @typedef {object} Result one probe, at any number of sites
 * @property {string} name its kind; with the column where that is not `label`, and a number where one kind was kept several times
 * @property {string} kind
 * @property {string} column
 * @property {object[]} rows
 */

/**
 * A row of scores does not say which of several probes of one kind it is from, such as with and without `--balance weights`. What
 * comes a second time for a layer is from another.
 * @param {object[]} rows as `/scores` gives them
 * @returns {Result[]}
 */
export function resultsOf(rows) {
  const results = [];
  for (const row of rows) {
    const key = [row.site, row.layer, row.metric, row.label].join("\n");
    const alike = results.filter((result) => result.kind === row.kind && result.column === row.label_column);
    let result = alike.find((one) => !one.seen.has(key));
    if (!result) {
      const column = row.label_column === "label" ? "" : ` of ${row.label_column}`;
      const name = `${row.kind}${column}${alike.length ? ` (${alike.length + 1})` : ""}`;
      result = { name, kind: row.kind, column: row.label_column, rows: [], seen: new Set() };
      results.push(result);
    }
    result.seen.add(key);
    result.rows.push(row);
  }
  return results;
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
