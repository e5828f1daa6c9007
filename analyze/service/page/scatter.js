// Points in the plane as pixels, and the point under the pointer. Nothing here touches the document.
//
// Fifty thousand arcs of a canvas take most of a second to fill; discs blended into an array of pixels take milliseconds. An
// index of cells for the nearest point was rejected: looking at each of 50,000 takes a tenth of a millisecond, and outliers,
// which hidden states have, put nearly all of them into one cell.

/**
 * @typedef {object} Cloud
 * @property {Int32Array} row
 * @property {Float32Array} x
 * @property {Float32Array} y
 * @property {Int16Array} label index into the classes, -1 for none
 */

/**
 * @typedef {object} View which part of the plane is seen: a point is at `x * scaleX + moveX`, in CSS pixels
 * @property {number} scaleX
 * @property {number} moveX
 * @property {number} scaleY negative: up is up
 * @property {number} moveY
 */

/** The view of all points, with a margin. */
export function wholeView(cloud, width, height) {
  const [left, right] = bounds(cloud.x), [low, high] = bounds(cloud.y);
  const margin = 26;
  const scaleX = (width - 2 * margin) / (right - left || 1), scaleY = -(height - 2 * margin) / (high - low || 1);
  return { scaleX, moveX: width / 2 - ((left + right) / 2) * scaleX, scaleY, moveY: height / 2 - ((low + high) / 2) * scaleY };
}

function bounds(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return low <= high ? [low, high] : [0, 0];
}

/** The view zoomed by a factor about a place in CSS pixels. */
export function zoomed(view, factor, left, top) {
  return {
    scaleX: view.scaleX * factor, moveX: left + (view.moveX - left) * factor,
    scaleY: view.scaleY * factor, moveY: top + (view.moveY - top) * factor,
  };
}

/** The view moved by CSS pixels. */
export function moved(view, right, down) {
  return { ...view, moveX: view.moveX + right, moveY: view.moveY + down };
}

/**
 * Blend the points into an image, row after row of red, green, blue and alpha.
 * @param {ImageData} image
 * @param {Cloud} cloud
 * @param {View} view
 * @param {number} ratio device pixels in a CSS pixel
 * @param {number[][]} colours of each class, and of no class at the end
 * @param {boolean[]} seen whether each class is drawn, and no class at the end
 * @param {number} radius of a point in CSS pixels
 * @param {number} opacity
 */
export function paint(image, cloud, view, ratio, colours, seen, radius, opacity) {
  const { width, height, data } = image, n = cloud.x.length, none = seen.length - 1;
  const reach = Math.ceil(radius * ratio), side = 2 * reach + 1, disc = discOf(radius * ratio, reach, opacity);
  const step = strideOf(n);
  for (let drawn = 0, index = 0; drawn < n; drawn++, index = (index + step) % n) {
    const label = cloud.label[index] < 0 ? none : cloud.label[index];
    if (!seen[label]) continue;
    const left = Math.round((cloud.x[index] * view.scaleX + view.moveX) * ratio) - reach;
    const top = Math.round((cloud.y[index] * view.scaleY + view.moveY) * ratio) - reach;
    if (left + side <= 0 || top + side <= 0 || left >= width || top >= height) continue;
    const [red, green, blue] = colours[label];
    for (let row = Math.max(0, -top); row < Math.min(side, height - top); row++) {
      for (let column = Math.max(0, -left); column < Math.min(side, width - left); column++) {
        const share = disc[row * side + column];
        if (share === 0) continue;
        const pixel = 4 * ((top + row) * width + left + column);
        data[pixel] += (red - data[pixel]) * share;
        data[pixel + 1] += (green - data[pixel + 1]) * share;
        data[pixel + 2] += (blue - data[pixel + 2]) * share;
      }
    }
  }
}

/** A step that leads through all of n points, from each to one far away: no class of a sorted corpus lies on top of the others. */
function strideOf(n) {
  const divisor = (one, other) => (other === 0 ? one : divisor(other, one % other));
  let step = Math.max(1, Math.round(n * 0.618));
  while (divisor(n, step) > 1) step++;
  return step;
}

/** How much of each pixel a disc covers. */
function discOf(radius, reach, opacity) {
  const side = 2 * reach + 1;
  return Float32Array.from({ length: side * side }, (_, index) => {
    const distance = Math.hypot((index % side) - reach, Math.floor(index / side) - reach);
    return opacity * Math.min(Math.max(radius + 0.5 - distance, 0), 1);
  });
}

/**
 * The seen point nearest to a place in CSS pixels.
 * @returns {number} its index, or -1 where none is within `reach`
 */
export function nearest(cloud, view, seen, left, top, reach) {
  const none = seen.length - 1;
  let best = -1, least = reach * reach;
  for (let index = 0; index < cloud.x.length; index++) {
    const across = cloud.x[index] * view.scaleX + view.moveX - left, down = cloud.y[index] * view.scaleY + view.moveY - top;
    const distance = across * across + down * down;
    if (distance <= least && seen[cloud.label[index] < 0 ? none : cloud.label[index]]) {
      least = distance;
      best = index;
    }
  }
  return best;
}

/** The first so many seen points within the field, as indices. */
export function within(cloud, view, seen, width, height, most) {
  const none = seen.length - 1, found = [];
  for (let index = 0; index < cloud.x.length && found.length < most; index++) {
    const left = cloud.x[index] * view.scaleX + view.moveX, top = cloud.y[index] * view.scaleY + view.moveY;
    const inside = left >= 0 && top >= 0 && left <= width && top <= height;
    if (inside && seen[cloud.label[index] < 0 ? none : cloud.label[index]]) found.push(index);
  }
  return found;
}
