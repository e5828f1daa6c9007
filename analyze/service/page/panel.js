// What the four panels share: a line that says what is going on, and a mark for when something is drawn.

import { Refusal, oneAtATime } from "./api.js";

/**
 * @param {HTMLElement} section has a `.status`
 */
export function panel(section) {
  const status = section.querySelector(".status");
  const alone = oneAtATime();

  /** Show a sentence over the panel; without one, nothing. */
  function say(...sentence) {
    status.classList.remove("error");
    status.replaceChildren(...sentence);
  }

  /**
   * Do work that asks the server; a newer call takes its place. Says that it is under way, and what went wrong.
   * @param {string} doing such as `Reading …`
   * @param {(signal: AbortSignal) => Promise<T>} work
   * @returns {Promise<T | undefined>} undefined where it was refused, or a newer call took its place
   * @template T
   */
  async function attempt(doing, work) {
    section.setAttribute("aria-busy", "true");
    say(doing);
    let refusal = null;
    const answer = await alone((signal) => work(signal).then((value) => ({ value }))).catch((error) => {
      if (!(error instanceof Refusal)) throw error;
      refusal = error;
      return {};
    });
    if (answer === undefined) return undefined;
    section.removeAttribute("aria-busy");
    say(...(refusal ? [refusal.message] : []));
    status.classList.toggle("error", refusal !== null);
    return answer.value;
  }

  /** Say that the panel shows something, once it is on the screen: `data-drawn` for tests, a mark for who measures. */
  function drawn(what) {
    delete section.dataset.drawn;
    requestAnimationFrame(() =>
      requestAnimationFrame(() => {
        section.dataset.drawn = what;
        performance.mark(`${section.id} drawn`);
      }),
    );
  }

  /** Whether the last work was refused. */
  function refused() {
    return status.classList.contains("error");
  }

  return { attempt, say, drawn, refused };
}
