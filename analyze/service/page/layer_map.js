// The layer map: a probe's score by layer with its band, above the AUROC of each label at each layer. It is also where a layer
// is chosen, by click or with the arrow keys; a run without scores has its layers all the same.
//
// Drawn as SVG, which can be read, hovered and tested; there are a few thousand cells at most.

import { curve, interval, keyOf, linear, percent, rules, said, spaced, steps, upright } from "./axes.js";
import { onScheme, seriesColour, viridis } from "./colours.js";
import { choose, command, draw, make, partsOf, short } from "./dom.js";
import { panel } from "./panel.js";
import { byLayer, labelsOf } from "./scores.js";

const LEFT = 88, RIGHT = 10, TOP = 8, GAP = 30, FOOT = 34, BAR = 8;
const LOWEST_ROW = 16, HIGHEST_ROW = 24, LOWEST_CURVES = 140, HIGHEST_CURVES = 320;
const LOWEST = -1; // of the axis: an R² has no lower bound, and one layer's would press all others flat

/**
 * @param {HTMLElement} section
 * @param {{onLayer: (layer: number) => void, onResult: (name: string) => void}} events
 */
export function layerMap(section, { onLayer, onResult }) {
  const parts = partsOf(section), own = panel(section);
  let shown = null; // {run, site, sites, layers, results, result, scored: whether scores could be read}
  let selected = null;
  let places = null; // of what is drawn: {x, edges, curves, cells, bottom}
  const key = make("ul", { class: "key" });
  parts.plot.before(key);

  function show(view) {
    shown = view;
    choose(parts.result, view.results.map((result) => [result.name, result.name]), view.result?.name ?? "");
    redraw();
  }

  function redraw() {
    if (!shown) return;
    const { result, site, run, layers } = shown;
    const scored = result !== null && byLayer(result, site, result.metric.name).length > 0;
    const probe = command(`affectome probe STORE ${run.run_id} --site ${site}`);
    if (shown.scored) own.say(...(scored || !run.complete ? [] : ["Not probed yet: run ", probe, " and reload."]));
    const size = { width: Math.max(parts.plot.clientWidth, 260), height: Math.max(parts.plot.clientHeight, 240) };
    places = columns(layers, size.width);
    const svg = draw("svg", { width: size.width, role: "presentation" });
    const labels = scored ? labelsOf(result, site) : [];
    const { curves, row } = heights(size.height, labels.length);
    const top = curves + GAP, bottom = labels.length ? top + row * labels.length : curves;
    Object.assign(places, { curves, cells: top, bottom });
    if (scored) svg.append(...scoreCurves(result, site), ...(labels.length ? labelMap(result, site, labels, top, row) : []));
    else svg.append(draw("rect", { class: "empty", x: LEFT, y: TOP, width: size.width - LEFT - RIGHT, height: curves - TOP }));
    svg.append(...layerTicks(bottom), draw("path", { class: "chosen" }), draw("path", { class: "hovered" }));
    svg.append(...layers.map((layer, index) => hitArea(layer, index, bottom)));
    svg.setAttribute("height", String(bottom + FOOT));
    parts.plot.replaceChildren(svg);
    parts.plot.setAttribute("aria-valuemin", String(layers[0] ?? 0));
    parts.plot.setAttribute("aria-valuemax", String(layers.at(-1) ?? 0));
    writeKey(scored);
    mark();
    own.drawn(`${run.run_id} ${site} ${scored ? result.name : ""}`.trim());
  }

  function scoreCurves(result, site) {
    const { metric } = result, { x } = places, right = x(Infinity);
    const points = byLayer(result, site, metric.name), control = byLayer(result, site, metric.control);
    const floor = Math.max(lowest(result), LOWEST), scale = linear(floor, 1, places.curves, TOP);
    const y = (value) => scale(Math.max(value, floor));
    const written = metric.percent ? percent : (value) => value.toFixed(1);
    const others = shown.sites.filter((other) => other !== site).map((other) =>
      curve(byLayer(result, other, metric.name), x, y, siteColour(other), { banded: false, className: "other", dots: false }));
    return [
      ...rules(steps(floor, 1, 0.2), y, LEFT, right, written),
      upright(metric.says, 12, (places.curves + TOP) / 2),
      draw("line", { class: "chance", x1: LEFT, x2: right, y1: y(metric.chance), y2: y(metric.chance) }),
      curve(control, x, y, siteColour(site), { banded: false, className: "control", dots: false }),
      ...others,
      curve(points, x, y, siteColour(site)),
    ];
  }

  /** Where the axis would have to begin for all that is drawn. */
  function lowest(result) {
    const { metric } = result, own = byLayer(result, shown.site, metric.name);
    const drawn = [byLayer(result, shown.site, metric.control), ...shown.sites.map((site) => byLayer(result, site, metric.name))];
    const values = [...drawn.flat().map((point) => point.value), ...own.map((point) => point.low ?? point.value)];
    return Math.min(metric.low, ...values.map((value) => Math.floor(value * 10) / 10));
  }

  function labelMap(result, site, labels, top, height) {
    const { edges } = places;
    const areas = labels.map((label) => byLayer(result, site, "auroc", label));
    const floor = Math.min(...areas.flat().map((point) => point.value)) >= 0.4 ? 0.5 : 0;
    const rows = labels.map((label, index) => {
      const cells = areas[index].map((point) => {
        const column = shown.layers.indexOf(point.at);
        if (column < 0) return "";
        const width = edges[column + 1] - edges[column];
        return draw("rect", { class: "cell", x: edges[column], y: top + index * height, width: width + 0.4, height: height + 0.4,
          fill: viridis((point.value - floor) / (1 - floor)) });
      });
      const name = said("tick", LEFT - 7, top + (index + 0.5) * height + 4, short(label, 12), "end");
      name.append(draw("title", {}, label));
      return [name, ...cells];
    });
    return [
      said("caption", LEFT, top - 8, "AUROC of each label", "start"),
      ...colourBar(floor, top - 16),
      ...rows.flat(),
    ];
  }

  function colourBar(floor, y) {
    const right = places.x(Infinity), width = 90, left = right - width - 26, n = 30;
    const parts = Array.from({ length: n }, (_, index) =>
      draw("rect", { x: left + (index * width) / n, y, width: width / n + 0.4, height: BAR, fill: viridis((index + 0.5) / n) }));
    return [
      said("tick", left - 5, y + BAR, floor.toFixed(1), "end"),
      ...parts,
      said("tick", right, y + BAR, "1.0", "end"),
    ];
  }

  function layerTicks(bottom) {
    const centres = shown.layers.map(places.x);
    const ticks = spaced(centres, 24).map((index) => said("tick", centres[index], bottom + 15, String(shown.layers[index])));
    const middle = (LEFT + places.x(Infinity)) / 2;
    return [...ticks, said("caption", middle, bottom + 30, "layer (0 = embedding output)")];
  }

  function hitArea(layer, index, bottom) {
    const { edges } = places;
    const width = edges[index + 1] - edges[index];
    return draw("rect", { class: "hit", "data-layer": layer, x: edges[index], y: 0, width, height: bottom + FOOT });
  }

  function writeKey(scored) {
    key.replaceChildren();
    if (!scored) return;
    const { metric } = shown.result;
    const others = shown.sites.filter((site) => site !== shown.site && byLayer(shown.result, site, metric.name).length);
    const chance = metric.percent ? percent(metric.chance) : metric.chance.toFixed(1);
    key.append(
      keyOf(`${shown.site}, 95% band`, siteColour(shown.site), make),
      ...others.map((site) => keyOf(site, siteColour(site), make, "other")),
      keyOf("shuffled labels", siteColour(shown.site), make, "dashed"),
      keyOf(`chance, ${chance}`, "var(--ink)", make, "dotted"),
      ...(lowest(shown.result) < LOWEST ? [make("li", {}, `what is below ${LOWEST} is drawn at ${LOWEST}`)] : []),
    );
  }

  function siteColour(site) {
    return seriesColour(shown.sites.indexOf(site));
  }

  /** Frame the chosen layer, and say its numbers or those of the layer under the pointer. */
  function mark(hovered = null) {
    if (!places) return;
    place(parts.plot.querySelector(".chosen"), selected);
    place(parts.plot.querySelector(".hovered"), hovered);
    parts.plot.setAttribute("aria-valuenow", String(selected ?? 0));
    parts.plot.setAttribute("aria-valuetext", sentence(selected));
    parts.readout.textContent = sentence(hovered ?? selected);
  }

  /** A frame around a layer, once around the curves and once around the cells of labels. */
  function place(frame, layer) {
    const index = shown.layers.indexOf(layer);
    const [left, right] = [places.edges[index], places.edges[index + 1]];
    const box = (top, bottom) => `M${left} ${top}H${right}V${bottom}H${left}Z`;
    const { curves, cells, bottom } = places;
    frame.setAttribute("d", index < 0 ? "" : box(2, curves) + (cells < bottom ? box(cells, bottom) : ""));
  }

  function sentence(layer) {
    if (layer === null) return "";
    const { result, site } = shown, metric = result?.metric;
    const point = result && byLayer(result, site, metric.name).find((one) => one.at === layer);
    if (!point) return `Layer ${layer}`;
    const written = metric.percent ? percent : (value) => value.toFixed(2);
    const name = { accuracy: "accuracy", auroc: "mean AUROC", r2: "R²" }[metric.name];
    const areas = labelsOf(result, site)
      .map((label) => ({ label, area: byLayer(result, site, "auroc", label).find((one) => one.at === layer)?.value ?? NaN }))
      .sort((one, other) => other.area - one.area);
    const [best, worst] = [areas[0], areas.at(-1)].map((one) => one && `${short(one.label, 20)} ${one.area.toFixed(2)}`);
    return `Layer ${layer}: ${name} ${interval(point, written)}${areas.length > 1 ? `; AUROC ${best} to ${worst}` : ""}`;
  }

  function layerUnder(event) {
    const layer = event.target.dataset?.layer;
    return layer === undefined ? null : Number(layer);
  }

  function move(steps) {
    const at = shown.layers.indexOf(selected);
    const next = Math.min(Math.max((at < 0 ? 0 : at) + steps, 0), shown.layers.length - 1);
    if (shown.layers.length && shown.layers[next] !== selected) onLayer(shown.layers[next]);
  }

  const STEPS = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -5, PageUp: 5, Home: -Infinity, End: Infinity };
  parts.plot.addEventListener("keydown", (event) => {
    if (!shown || !(event.key in STEPS)) return;
    event.preventDefault();
    move(STEPS[event.key]);
  });
  parts.plot.addEventListener("click", (event) => {
    const layer = layerUnder(event);
    if (layer !== null) onLayer(layer);
  });
  parts.plot.addEventListener("pointermove", (event) => mark(layerUnder(event)));
  parts.plot.addEventListener("pointerleave", () => mark());
  parts.result.addEventListener("change", () => onResult(parts.result.value));
  new ResizeObserver(() => redraw()).observe(parts.plot);
  onScheme(redraw);

  return {
    show,
    attempt: own.attempt,
    select(layer) {
      selected = layer;
      mark();
    },
  };
}

/** How high the curves and the row of each label are: what there is, within bounds; more labels than fit can be scrolled. */
function heights(height, nLabels) {
  const left = height - GAP - FOOT - 4;
  const row = nLabels ? Math.min(Math.max((left - LOWEST_CURVES) / nLabels, LOWEST_ROW), HIGHEST_ROW) : 0;
  return { row, curves: Math.min(Math.max(left - row * nLabels, LOWEST_CURVES), HIGHEST_CURVES) };
}

/** Where layers stand: their centres, and cells that begin and end halfway between neighbours. */
function columns(layers, width) {
  const [first, last] = [layers[0] ?? 0, layers.at(-1) ?? 0];
  const scale = linear(first - 0.5, last + 0.5, LEFT, width - RIGHT);
  const middles = layers.slice(1).map((layer, index) => (layer + layers[index]) / 2);
  return {
    x: (layer) => (layer === Infinity ? width - RIGHT : scale(layer)),
    edges: [first - 0.5, ...middles, last + 0.5].map(scale),
  };
}
