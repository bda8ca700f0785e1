// Label maps as {labels: Uint8Array, width, height}: to and from PNG, and the strokes on them.
// A rectangle is [left, top, right, bottom], right and bottom excluded.

function canvasOf(width, height) {
  const canvas = document.createElement('canvas');
  canvas.width = width;
  canvas.height = height;
  return [canvas, canvas.getContext('2d', { willReadFrequently: true })];
}

function red(source, width, height) {
  const [, context] = canvasOf(width, height);
  context.drawImage(source, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  const labels = new Uint8Array(width * height);
  for (let i = 0; i < labels.length; i += 1) labels[i] = data[4 * i];
  return { labels, width, height };
}

export async function decode(blob) {
  const bitmap = await createImageBitmap(blob, { premultiplyAlpha: 'none', colorSpaceConversion: 'none' });
  return red(bitmap, bitmap.width, bitmap.height);
}

export async function decodeUrl(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  return red(image, image.naturalWidth, image.naturalHeight);
}

export function encode({ labels, width, height }) {
  const [canvas, context] = canvasOf(width, height);
  const image = context.createImageData(width, height);
  for (let i = 0; i < labels.length; i += 1) {
    image.data[4 * i] = labels[i];
    image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

// All pixels whose centre is within the radius of the segment; a brush of 1 is one pixel.
export function drawSegment({ labels, width, height }, [ax, ay], [bx, by], diameter, label) {
  const radius = Math.max(diameter / 2, 0.71);
  const left = Math.max(0, Math.floor(Math.min(ax, bx) - radius));
  const top = Math.max(0, Math.floor(Math.min(ay, by) - radius));
  const right = Math.min(width, Math.ceil(Math.max(ax, bx) + radius) + 1);
  const bottom = Math.min(height, Math.ceil(Math.max(ay, by) + radius) + 1);
  const dx = bx - ax;
  const dy = by - ay;
  const long = dx * dx + dy * dy;
  for (let y = top; y < bottom; y += 1) {
    for (let x = left; x < right; x += 1) {
      const px = x + 0.5 - ax;
      const py = y + 0.5 - ay;
      const t = long ? Math.min(1, Math.max(0, (px * dx + py * dy) / long)) : 0;
      const ex = px - t * dx;
      const ey = py - t * dy;
      if (ex * ex + ey * ey <= radius * radius) labels[y * width + x] = label;
    }
  }
  return [left, top, Math.max(left, right), Math.max(top, bottom)];
}

export function flood({ labels, width, height }, x, y, label) {
  const old = labels[y * width + x];
  if (old === label) return;
  const waiting = [y * width + x];
  while (waiting.length) {
    let i = waiting.pop();
    if (labels[i] !== old) continue;
    const start = i - (i % width);
    while (i > start && labels[i - 1] === old) i -= 1;
    for (; i < start + width && labels[i] === old; i += 1) {
      labels[i] = label;
      if (i >= width && labels[i - width] === old) waiting.push(i - width);
      if (i < width * (height - 1) && labels[i + width] === old) waiting.push(i + width);
    }
  }
}

// Even-odd rule at the pixels' centres.
export function fillPolygon({ labels, width, height }, points, label) {
  for (let y = 0; y < height; y += 1) {
    const crossings = [];
    points.forEach(([ax, ay], i) => {
      const [bx, by] = points[(i + 1) % points.length];
      const at = y + 0.5;
      if ((ay <= at) !== (by <= at)) crossings.push(ax + ((at - ay) / (by - ay)) * (bx - ax));
    });
    crossings.sort((a, b) => a - b);
    for (let i = 0; i + 1 < crossings.length; i += 2) {
      const from = Math.max(0, Math.ceil(crossings[i] - 0.5));
      const to = Math.min(width, Math.ceil(crossings[i + 1] - 0.5));
      if (to > from) labels.fill(label, y * width + from, y * width + to);
    }
  }
}

function cut(labels, width, [left, top, right, bottom]) {
  const piece = new Uint8Array((right - left) * (bottom - top));
  for (let y = top; y < bottom; y += 1) piece.set(labels.subarray(y * width + left, y * width + right), (y - top) * (right - left));
  return piece;
}

// What changed between two states of a map, as small as a rectangle allows; null if nothing did.
export function difference(before, after, width) {
  const height = after.length / width;
  let [left, top, right, bottom] = [width, height, 0, 0];
  for (let y = 0, i = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1, i += 1) {
      if (before[i] === after[i]) continue;
      if (x < left) left = x;
      if (x >= right) right = x + 1;
      if (y < top) top = y;
      bottom = y + 1;
    }
  }
  if (right === 0) return null;
  const box = [left, top, right, bottom];
  return { box, before: cut(before, width, box), after: cut(after, width, box) };
}

export function paste({ labels, width }, [left, top, right, bottom], piece) {
  for (let y = top; y < bottom; y += 1) {
    const from = (y - top) * (right - left);
    labels.set(piece.subarray(from, from + right - left), y * width + left);
  }
}
