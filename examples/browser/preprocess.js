// What MNIST's makers did to every digit (LeCun et al. 1998): fit its bounding box into 20×20 pixels with the aspect
// ratio kept, then put the centre of mass into the middle of 28×28.

const BOX = 20, SIDE = 28;
const MIDDLE = 14.5; // measured: MNIST's centres of mass lie between 14 and 15, from the edge of the image

/** Bounding box of everything drawn, or null. `gray` is a Uint8Array of side × side values. */
export function boundingBox(gray, side) {
  let left = side, right = -1, top = side, bottom = -1;
  for (let y = 0; y < side; y++)
    for (let x = 0; x < side; x++)
      if (gray[y * side + x] > 0) {
        left = Math.min(left, x); right = Math.max(right, x);
        top = Math.min(top, y); bottom = Math.max(bottom, y);
      }
  return right < 0 ? null : { left, top, width: right - left + 1, height: bottom - top + 1 };
}

/** Mean of `gray` over the rectangle [x0, x1) × [y0, y1), fractions of pixels included; outside it is black. */
function areaMean(gray, side, x0, x1, y0, y1) {
  let sum = 0;
  for (let y = Math.max(0, Math.floor(y0)); y < Math.min(side, y1); y++)
    for (let x = Math.max(0, Math.floor(x0)); x < Math.min(side, x1); x++) {
      const wide = Math.min(x + 1, x1) - Math.max(x, x0), high = Math.min(y + 1, y1) - Math.max(y, y0);
      sum += gray[y * side + x] * wide * high;
    }
  return sum / ((x1 - x0) * (y1 - y0));
}

/** Centre of mass (x, y) of `gray` within its box, in pixels of the drawing. */
function centreOfMass(gray, side, box) {
  let mass = 0, mx = 0, my = 0;
  for (let y = box.top; y < box.top + box.height; y++)
    for (let x = box.left; x < box.left + box.width; x++) {
      const value = gray[y * side + x];
      mass += value; mx += value * (x + 0.5); my += value * (y + 0.5);
    }
  return [mx / mass, my / mass];
}

/** A drawing (side × side, white on black) as 28 × 28 raw bytes; null if nothing is drawn. */
export function toMnist(gray, side) {
  const box = boundingBox(gray, side);
  if (!box) return null;
  const step = Math.max(box.width, box.height) / BOX; // pixels of the drawing per pixel of the result
  const [cx, cy] = centreOfMass(gray, side, box);
  // whole pixels, as there: the box stays aligned, the centre of mass comes within half a pixel of the middle
  const left = Math.round(MIDDLE - (cx - box.left) / step), top = Math.round(MIDDLE - (cy - box.top) / step);
  const pixels = new Uint8Array(SIDE * SIDE);
  for (let row = 0; row < SIDE; row++)
    for (let column = 0; column < SIDE; column++) {
      const x = box.left + (column - left) * step, y = box.top + (row - top) * step;
      pixels[row * SIDE + column] = Math.round(areaMean(gray, side, x, x + step, y, y + step));
    }
  return pixels;
}
