// Questions to the server that the page came from. Addresses are relative, so that the page works behind a proxy's prefix.

/** A question that got no answer; its message is one sentence for whoever asked, `status` that of the server, if it answered. */
export class Refusal extends Error {
  constructor(sentence, status) {
    super(sentence);
    this.status = status;
  }
}

const GONE = "The server does not answer. Start it again with affectome serve, then repeat what you did.";
const TRIES = 3, BUSY_MS = 1000; // of a server that has too much to do

/**
 * Ask the server.
 * @param {string} path such as `api/runs`
 * @param {{signal?: AbortSignal, body?: object}} options a body makes it a POST
 * @returns {Promise<any>} the answer, from JSON
 * @throws {Refusal} with the server's sentence, or one that says that it does not answer
 */
export async function ask(path, { signal, body } = {}) {
  const request = { signal, headers: { Accept: "application/json" } };
  if (body !== undefined) {
    request.method = "POST";
    request.body = JSON.stringify(body);
    request.headers["Content-Type"] = "application/json";
  }
  let [response, text] = await answered(path, request);
  for (let again = 0; response.status === 429 && again < TRIES; again++) {
    await new Promise((resolve) => setTimeout(resolve, BUSY_MS));
    [response, text] = await answered(path, request);
  }
  if (response.status === 401) {
    location.reload(); // the server answers the page itself with its form to sign in
    return new Promise(() => {});
  }
  const answer = parsed(text);
  if (!response.ok || answer === undefined) {
    const sentence = typeof answer?.error === "string" ? answer.error : `The server answers with status ${response.status}.`;
    throw new Refusal(sentence, response.status);
  }
  return answer;
}

async function answered(path, request) {
  try {
    const response = await fetch(path, request);
    return [response, await response.text()];
  } catch (error) {
    if (request.signal?.aborted) throw error;
    throw new Refusal(GONE);
  }
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/**
 * The path of a run's resource.
 * @param {string} runId
 * @param {string} what such as `projection`
 * @param {Object<string, any>} parameters null, undefined and "" are left out; an array gives one parameter for each value
 */
export function ofRun(runId, what, parameters = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== null && one !== undefined && one !== "") query.append(name, String(one));
    }
  }
  const asked = query.size ? `?${query}` : "";
  return `api/runs/${encodeURIComponent(runId)}/${what}${asked}`;
}

/** Wait, so that a newer question can take this one's place before it is asked. */
export async function settled(signal, milliseconds) {
  await new Promise((resolve) => setTimeout(resolve, milliseconds));
  signal.throwIfAborted();
}

/**
 * A place for one question at a time: a new one aborts the one before.
 * @returns {(work: (signal: AbortSignal) => Promise<T>) => Promise<T | undefined>} undefined where a newer one took its place
 * @template T
 */
export function oneAtATime() {
  let running = null;
  return async (work) => {
    running?.abort();
    const own = new AbortController();
    running = own;
    try {
      const answer = await work(own.signal);
      return own.signal.aborted ? undefined : answer;
    } catch (error) {
      if (own.signal.aborted) return undefined;
      throw error;
    }
  };
}
