// Elements without markup: whatever comes from a store is put in as text, so nothing in it can become an element or a script.
// A framework was rejected: the page has four panels, and would need a build step or a copy of somebody's library.

const SVG = "http://www.w3.org/2000/svg";

/**
 * An HTML element.
 * @param {string} tag
 * @param {Object<string, string | number | boolean>} attributes `true` sets one without a value, `false` leaves it out
 * @param {...(Node | string)} children strings become text
 * @returns {HTMLElement}
 */
export function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/**
 * As `make`, an element of SVG.
 * @returns {SVGElement}
 */
export function draw(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false) element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children);
  return element;
}

/**
 * The elements of a section that carry `data-part`, by its value.
 * @param {Element} section
 * @returns {Object<string, any>}
 */
export function partsOf(section) {
  return Object.fromEntries([...section.querySelectorAll("[data-part]")].map((part) => [part.dataset.part, part]));
}

/**
 * Put choices into a select element; one without any cannot be used.
 * @param {HTMLSelectElement} select
 * @param {Array<[string, string]>} choices value and what is shown
 * @param {string} chosen
 */
export function choose(select, choices, chosen) {
  select.replaceChildren(...choices.map(([value, shown]) => make("option", { value, selected: value === chosen }, shown)));
  select.value = chosen;
  select.disabled = choices.length === 0;
}

/** What a command looks like in a sentence. */
export function command(text) {
  return make("code", {}, text);
}

/** A text of at most so many characters, on one line. */
export function short(text, longest) {
  const letters = [...String(text).replace(/\s+/g, " ")];
  return letters.length <= longest ? letters.join("") : `${letters.slice(0, longest - 1).join("")}…`;
}

/** A whole number with its thousands apart. */
export function count(number) {
  return number.toLocaleString("en-US");
}
