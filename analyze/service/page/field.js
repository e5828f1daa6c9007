// The field of points: a canvas that zooms, moves and says which point is meant, and rings drawn over it.

import { said } from "./axes.js";
import { NONE, rgb } from "./colours.js";
import { draw } from "./dom.js";
import { moved, nearest, paint, wholeView, within, zoomed } from "./scatter.js";

const REACH = 10; // CSS pixels from the pointer to the point that is meant
const STILL = 4; // CSS pixels that a click may move
const STAR = "M0-9 2.3-3.1 8.6-2.8 3.7 1.2 5.3 7.3 0 3.9-5.3 7.3-3.7 1.2-8.6-2.8-2.3-3.1Z";
const EMPTY = { row: new Int32Array(), x: new Float32Array(), y: new Float32Array(), label: new Int16Array() };

/**
 * @param {{field: HTMLElement, canvas: HTMLCanvasElement, marks: SVGElement}} parts
 * @param {{onHover: (index: number, left: number, top: number) => void, onPick: (index: number) => void,
 *   onView: () => void}} events
 */
export function pointField({ field, canvas, marks }, { onHover, onPick, onView }) {
  let cloud = EMPTY, colours = [rgb(NONE)], seen = [true];
  let view = null; // null: whatever shows all points
  let rings = [], place = null, pointed = -1;
  let asked = false;
  const where = () => view ?? wholeView(cloud, field.clientWidth, field.clientHeight);

  function redraw() {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      drawNow();
    });
  }

  function drawNow() {
    const { clientWidth, clientHeight } = field, ratio = devicePixelRatio || 1;
    const width = Math.round(clientWidth * ratio), height = Math.round(clientHeight * ratio);
    if (!width || !height) return;
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d", { willReadFrequently: true }); // its pixels come from memory, so let them stay there
    const image = context.createImageData(width, height);
    const [red, green, blue] = getComputedStyle(field).backgroundColor.match(/\d+/g).map(Number);
    new Uint32Array(image.data.buffer).fill(new Uint32Array(Uint8Array.of(red, green, blue, 255).buffer)[0]);
    const n = cloud.x.length;
    const grown = view ? Math.min(1.8, Math.sqrt(view.scaleX / wholeView(cloud, clientWidth, clientHeight).scaleX)) : 1;
    const radius = Math.min(Math.max(0.3 * Math.sqrt((clientWidth * clientHeight) / (n || 1)), 1.1), 3.2) * Math.max(grown, 1);
    paint(image, cloud, where(), ratio, colours, seen, radius, n > 10000 ? 0.6 : 0.8);
    context.putImageData(image, 0, 0);
    drawMarks();
  }

  function drawMarks() {
    const at = where();
    const indices = new Map(rings.map((ring) => [ring.row, -1]));
    if (indices.size) cloud.row.forEach((row, index) => indices.has(row) && indices.set(row, index));
    const circles = rings.filter((ring) => indices.get(ring.row) >= 0).map((ring) => circle(indices.get(ring.row), at, ring.kind));
    if (pointed >= 0) circles.push(circle(pointed, at, "pointed"));
    marks.replaceChildren(...circles, ...(place ? [star(at)] : []));
  }

  function star(at) {
    const left = place[0] * at.scaleX + at.moveX, top = place[1] * at.scaleY + at.moveY;
    const before = left > field.clientWidth - 120;
    return draw("g", { class: "place", transform: `translate(${left} ${top})` },
      draw("path", { class: "star", d: STAR }),
      said("name", before ? -12 : 12, 4, "your sentence", before ? "end" : "start"));
  }

  function circle(index, at, kind) {
    const radius = { chosen: 8, pointed: 7, strong: 9 }[kind] ?? 6;
    return draw("circle", { class: `ring ${kind}`, "data-row": cloud.row[index], r: radius,
      cx: cloud.x[index] * at.scaleX + at.moveX, cy: cloud.y[index] * at.scaleY + at.moveY });
  }

  function look(next) {
    view = next;
    point(-1, 0, 0);
    redraw();
    onView();
  }

  function point(index, left, top) {
    if (index === pointed && index < 0) return;
    const changed = index !== pointed;
    pointed = index;
    if (changed) drawMarks();
    onHover(index, left, top);
  }

  function over(event) {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  let drag = null; // {x, y, far}
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    canvas.setPointerCapture(event.pointerId);
    drag = { x: event.clientX, y: event.clientY, far: false };
  });
  canvas.addEventListener("pointermove", (event) => {
    const [left, top] = over(event);
    if (!drag) {
      const index = nearest(cloud, where(), seen, left, top, REACH);
      if (index !== pointed) point(index, left, top);
      return;
    }
    const [right, down] = [event.clientX - drag.x, event.clientY - drag.y];
    if (!drag.far && Math.hypot(right, down) < STILL) return;
    drag = { x: event.clientX, y: event.clientY, far: true };
    look(moved(where(), right, down));
  });
  canvas.addEventListener("pointerup", (event) => {
    const picked = drag && !drag.far ? nearest(cloud, where(), seen, ...over(event), REACH) : -1;
    drag = null;
    if (picked >= 0) onPick(picked);
  });
  canvas.addEventListener("pointercancel", () => (drag = null));
  canvas.addEventListener("pointerleave", () => point(-1, 0, 0));
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const pixels = event.deltaY * (event.deltaMode === 1 ? 16 : 1);
    look(zoomed(where(), Math.exp(-Math.min(Math.max(pixels, -240), 240) / 400), ...over(event)));
  }, { passive: false });
  const MOVES = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
  canvas.addEventListener("keydown", (event) => {
    const middle = [field.clientWidth / 2, field.clientHeight / 2];
    if (event.key in MOVES) look(moved(where(), ...MOVES[event.key]));
    else if (event.key === "+" || event.key === "=") look(zoomed(where(), 1.3, ...middle));
    else if (event.key === "-") look(zoomed(where(), 1 / 1.3, ...middle));
    else if (event.key === "0") look(null);
    else return;
    event.preventDefault();
  });
  new ResizeObserver(redraw).observe(field);

  return {
    /** Show other points, null for none: all of them, or as much of the plane as before where it is the same. */
    show(next, samePlane = false) {
      cloud = next ?? EMPTY;
      pointed = -1;
      if (!samePlane) view = null;
      drawNow();
    },
    /** @param {string[]} names of each class and of none, as `#RRGGBB` @param {boolean[]} shown whether each is drawn */
    colour(names, shown) {
      colours = names.map(rgb);
      seen = shown;
      redraw();
    },
    /** @param {{row: number, kind: string}[]} around rings around rows @param {number[] | null} star a place in the plane */
    mark(around, star) {
      rings = around;
      place = star;
      drawMarks();
    },
    whole: () => look(null),
    /** The first so many points that can be seen, as indices. */
    visible: (most) => within(cloud, where(), seen, field.clientWidth, field.clientHeight, most),
    redraw,
  };
}
