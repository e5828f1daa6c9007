// What is looked at, kept in the address behind `#`, so that a link opens the same view.

/**
 * @typedef {object} State
 * @property {string} run id, or how it begins; "" for the first that has something to show
 * @property {string} site
 * @property {number | null} layer
 * @property {number | null} at at a site on a grid, which offset
 * @property {string} probe which result the layer map shows
 * @property {string} where
 * @property {string} colour the column that points are coloured by; "" for none
 * @property {string[]} hide labels not shown
 * @property {string} metric
 * @property {string} scaling how states are seen when neighbours are looked for
 * @property {string} text the sentence whose neighbours are shown
 * @property {number | null} row the point whose neighbours are shown
 * @property {string} along the label along whose direction the ends are shown
 */

const TEXTS = { run: "", site: "", probe: "", where: "", colour: "label", metric: "cosine", scaling: "none", text: "", along: "" };
const NUMBERS = ["layer", "at", "row"];
const NAMES = ["run", "site", "layer", "at", "probe", "where", "colour", "hide", "metric", "scaling", "text", "row", "along"];

/**
 * @param {string} hash as in `location.hash`
 * @returns {State}
 */
export function read(hash) {
  const given = new URLSearchParams(hash.replace(/^#/, ""));
  const state = { hide: given.getAll("hide") };
  for (const [name, otherwise] of Object.entries(TEXTS)) state[name] = given.get(name) ?? otherwise;
  for (const name of NUMBERS) state[name] = /^\d{1,12}$/.test(given.get(name) ?? "") ? Number(given.get(name)) : null;
  return state;
}

/**
 * @param {State} state
 * @returns {string} what `read` reads, beginning with `#`
 */
export function written(state) {
  const kept = new URLSearchParams();
  for (const name of NAMES) {
    const otherwise = TEXTS[name] ?? null;
    for (const value of [state[name]].flat()) if (value !== otherwise && value !== null) kept.append(name, String(value));
  }
  return `#${kept}`;
}
