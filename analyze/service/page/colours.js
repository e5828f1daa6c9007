// The colours of analyze/plots.py and analyze/drawing.py, which the colour-blind can tell apart, and what stands for them where
// the background is dark.

const EMOTIONS = {
  anger: "#EE6677", disgust: "#228833", fear: "#AA3377", joy: "#CCBB44", sadness: "#4477AA", surprise: "#66CCEE", neutral: "#8C8C8C",
};
const OTHERS = ["#332288", "#CC6677", "#117733", "#DDCC77", "#88CCEE", "#882255", "#44AA99", "#999933", "#AA4499", "#777777"];
const SERIES = ["#0B4F8A", "#D1600B", "#117733", "#882255", "#44AA99", "#7A6A00"];
const READERS = { refit: "#0B4F8A", "offset-0": "#D1600B", "offset-aware": "#882255", words: "#117733", shuffled: "#6B6B6B" };
const IN_THE_DARK = {
  "#332288": "#8C83E8", "#117733": "#4DB36C", "#882255": "#D06A9C", "#228833": "#3FAE55", "#AA3377": "#D563A5",
  "#4477AA": "#6B9FD4", "#777777": "#A0A0A0", "#0B4F8A": "#6CB0EE", "#D1600B": "#F08A3C", "#7A6A00": "#C4B13C", "#6B6B6B": "#A0A0A0",
};
const VIRIDIS = ["#440154", "#482475", "#414487", "#355F8D", "#2A788E", "#21918C", "#22A884", "#44BF70", "#7AD151", "#BDDF26", "#FDE725"];

export const NONE = "#B0B0B0"; // of rows without a label
const dark = matchMedia("(prefers-color-scheme: dark)");

/** Call when the scheme changes from light to dark or back. */
export function onScheme(redraw) {
  dark.addEventListener("change", redraw);
}

function shown(colour) {
  return dark.matches ? (IN_THE_DARK[colour] ?? colour) : colour;
}

/**
 * A colour for each class: the fixed ones where every class has one, otherwise a palette in order.
 * @param {string[]} classes
 * @returns {string[]}
 */
export function classColours(classes) {
  const known = classes.every((name) => Object.hasOwn(EMOTIONS, name));
  return classes.map((name, index) => shown(known ? EMOTIONS[name] : OTHERS[index % OTHERS.length]));
}

/** Of sites, in order. */
export function seriesColour(index) {
  return shown(SERIES[index % SERIES.length]);
}

/** Of a reader of persistence. */
export function readerColour(reader) {
  return shown(READERS[reader] ?? "#7A6A00");
}

/**
 * Viridis.
 * @param {number} share 0 to 1; what lies outside is drawn as the end
 */
export function viridis(share) {
  const place = Math.min(Math.max(share, 0), 1) * (VIRIDIS.length - 1);
  const index = Math.min(Math.floor(place), VIRIDIS.length - 2);
  const [low, high] = [rgb(VIRIDIS[index]), rgb(VIRIDIS[index + 1])];
  return `rgb(${low.map((value, part) => Math.round(value + (high[part] - value) * (place - index))).join(" ")})`;
}

/** Red, green and blue, 0 to 255, of `#RRGGBB`. */
export function rgb(colour) {
  return [1, 3, 5].map((start) => parseInt(colour.slice(start, start + 2), 16));
}
