// What stands in the rows of a run: asked for by number where it is needed, and kept.

import { ask, ofRun } from "./api.js";

const MOST = 5000; // rows kept

/** A store of rows; see the functions in it. */
export function texts() {
  const kept = new Map();

  /** Keep rows of a run that came with another answer. */
  function keep(runId, rows) {
    for (const row of rows) kept.set(`${runId} ${row.row}`, row);
    while (kept.size > MOST) kept.delete(kept.keys().next().value);
  }

  return {
    keep,

    /** A row that is kept, or undefined. */
    known: (runId, row) => kept.get(`${runId} ${row}`),

    /** Rows in the order given, asked for where they are not kept. */
    async of(runId, rows, signal) {
      const missing = rows.filter((row) => !kept.has(`${runId} ${row}`));
      if (missing.length) {
        const found = await ask(ofRun(runId, "utterances", { rows: missing, limit: missing.length }), { signal });
        keep(runId, found.rows);
      }
      return rows.map((row) => kept.get(`${runId} ${row}`)).filter((row) => row !== undefined);
    },
  };
}
