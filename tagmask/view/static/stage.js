// The canvases that show a photo with a label map or heat over it: drawing, zoom, and pointers.
import { h } from './dom.js';

const [TOGETHER, CLOSEST] = [1, 60];
// Points of viridis; between them the colours are interpolated.
const ANCHORS = [[68, 1, 84], [72, 40, 120], [62, 74, 137], [49, 104, 142], [38, 130, 142], [31, 158, 137], [53, 183, 121], [110, 206, 88], [181, 222, 43], [253, 231, 37]];

const pack = (r, g, b, a) => ((a << 24) | (b << 16) | (g << 8) | r) >>> 0;

const HEAT = Uint32Array.from({ length: 256 }, (_, value) => {
  const at = (value / 255) * (ANCHORS.length - 1);
  const i = Math.min(ANCHORS.length - 2, Math.floor(at));
  return pack(...ANCHORS[i].map((low, c) => Math.round(low + (at - i) * (ANCHORS[i + 1][c] - low))), 255);
});

export function makeLook(colours, hidden) {
  const look = { fill: new Uint32Array(256), line: new Uint32Array(256), shown: new Uint8Array(256) };
  colours.forEach((colour, label) => {
    if (hidden.has(label)) return;
    const rgb = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
    look.fill[label] = pack(...rgb, 255);
    look.line[label] = pack(...rgb.map((c) => Math.round(c * 0.35)), 255);
    look.shown[label] = label;
  });
  if (!hidden.has(255)) {
    look.line[255] = pack(40, 40, 40, 255);
    look.shown[255] = 255;
  }
  return look;
}

const canvasFor = (width, height) => Object.assign(document.createElement('canvas'), { width, height });

export class Pane {
  constructor({ caption, photo, map, heat, read, tools }, test) {
    Object.assign(this, { photo, map, heat, read, tools });
    this.width = photo.width;
    this.height = photo.height;
    this.canvas = h('canvas', { test, 'aria-label': map || heat ? 'Photo with its masks' : 'Photo' });
    this.element = h('figure', { class: 'pane' }, caption && h('figcaption', {}, caption), this.canvas);
    if (heat) this.paintHeat();
    if (map) {
      this.fill = canvasFor(this.width, this.height);
      this.line = canvasFor(this.width, this.height);
    }
  }

  paintHeat() {
    const { labels, width, height } = this.heat;
    this.fill = canvasFor(width, height);
    const image = new ImageData(width, height);
    new Uint32Array(image.data.buffer).set(Array.from(labels, (value) => HEAT[value]));
    this.fill.getContext('2d').putImageData(image, 0, 0);
  }

  // Colours and outlines of the map, or of a rectangle of it.
  paint(look, box = [0, 0, this.width, this.height]) {
    if (!this.map) return;
    const { labels, width, height } = this.map;
    const thick = width > 900 ? 2 : 1;
    const period = Math.max(8, Math.round(width / 80));
    const left = Math.max(0, box[0] - thick);
    const top = Math.max(0, box[1] - thick);
    const right = Math.min(width, box[2] + thick);
    const bottom = Math.min(height, box[3] + thick);
    if (right <= left || bottom <= top) return;
    const fill = new ImageData(right - left, bottom - top);
    const line = new ImageData(right - left, bottom - top);
    const fills = new Uint32Array(fill.data.buffer);
    const lines = new Uint32Array(line.data.buffer);
    const [light, dark] = [pack(255, 255, 255, 150), pack(0, 0, 0, 70)];
    for (let y = top, o = 0; y < bottom; y += 1) {
      for (let x = left; x < right; x += 1, o += 1) {
        const i = y * width + x;
        const label = look.shown[labels[i]];
        fills[o] = look.fill[labels[i]];
        let other = label;
        for (let step = 1; step <= thick && other === label; step += 1) {
          if (x + step < width) other = look.shown[labels[i + step]];
          if (other === label && y + step < height) other = look.shown[labels[i + step * width]];
        }
        if (other !== label) lines[o] = look.line[label || other];
        else if (label === 255) lines[o] = (x + y) % period < period / 8 ? light : dark;
      }
    }
    this.fill.getContext('2d').putImageData(fill, left, top);
    this.line.getContext('2d').putImageData(line, left, top);
  }

  resize() {
    const ratio = window.devicePixelRatio || 1;
    const { clientWidth, clientHeight } = this.canvas;
    const [width, height] = [Math.round(clientWidth * ratio), Math.round(clientHeight * ratio)];
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
    return ratio;
  }

  // CSS pixels of the canvas = photo pixels × scale + offset.
  place(view) {
    const { clientWidth, clientHeight } = this.canvas;
    const fit = Math.min(clientWidth / this.width, clientHeight / this.height) || 1;
    const scale = fit * view.zoom;
    return { fit, scale, x: clientWidth / 2 - view.x * this.width * scale, y: clientHeight / 2 - view.y * this.height * scale };
  }

  draw(view, opacity) {
    const ratio = this.resize();
    const context = this.canvas.getContext('2d');
    const { scale, x, y } = this.place(view);
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    context.setTransform(ratio * scale, 0, 0, ratio * scale, ratio * x, ratio * y);
    context.imageSmoothingEnabled = scale < 4;
    context.drawImage(this.photo, 0, 0, this.width, this.height);
    context.imageSmoothingEnabled = Boolean(this.heat) || scale < 1;
    context.globalAlpha = opacity;
    if (this.fill) context.drawImage(this.fill, 0, 0, this.width, this.height);
    context.globalAlpha = 1;
    if (this.line) context.drawImage(this.line, 0, 0);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.tools?.draw(context, (px, py) => [px * scale + x, py * scale + y], scale);
  }
}

export class Stage {
  constructor(readout) {
    this.readout = readout;
    this.element = h('div', { class: 'stage' });
    this.panes = [];
    this.view = { zoom: 1, x: 0.5, y: 0.5 };
    this.opacity = 0.5;
    this.pointers = new Map();
    this.panning = false;
    this.drawing = 0;
    new ResizeObserver(() => this.draw()).observe(this.element);
  }

  setPanes(panes, look) {
    this.look = look;
    this.panes = panes;
    this.pointers.clear();
    this.gesture = null;
    for (const pane of panes) {
      pane.paint(look);
      this.listen(pane);
    }
    this.element.replaceChildren(...panes.map((pane) => pane.element));
    this.element.dataset.panes = panes.length;
    this.draw();
  }

  clear() {
    this.panes = [];
    this.element.replaceChildren();
  }

  setLook(look) {
    this.look = look;
    for (const pane of this.panes) pane.paint(look);
    this.draw();
  }

  draw() {
    if (this.drawing) return;
    this.drawing = requestAnimationFrame(() => {
      this.drawing = 0;
      for (const pane of this.panes) pane.draw(this.view, this.opacity);
    });
  }

  reset() {
    this.view = { zoom: 1, x: 0.5, y: 0.5 };
    this.draw();
  }

  at(pane, event) {
    const box = pane.canvas.getBoundingClientRect();
    const { scale, x, y } = pane.place(this.view);
    return [(event.clientX - box.left - x) / scale, (event.clientY - box.top - y) / scale];
  }

  // Zoom so that the photo's point stays where it is on the screen.
  zoomAt(pane, [px, py], factor) {
    const zoom = Math.min(CLOSEST, Math.max(TOGETHER / 2, this.view.zoom * factor));
    const real = zoom / this.view.zoom;
    const [fx, fy] = [px / pane.width, py / pane.height];
    this.view = { zoom, x: fx + (this.view.x - fx) / real, y: fy + (this.view.y - fy) / real };
    this.draw();
  }

  pan(pane, dx, dy) {
    const { scale } = pane.place(this.view);
    const clamp = (value) => Math.min(1, Math.max(0, value));
    this.view.x = clamp(this.view.x - dx / scale / pane.width);
    this.view.y = clamp(this.view.y - dy / scale / pane.height);
    this.draw();
  }

  listen(pane) {
    const { canvas, tools } = pane;
    canvas.addEventListener('wheel', (event) => {
      event.preventDefault();
      this.zoomAt(pane, this.at(pane, event), Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0015)));
    }, { passive: false });
    canvas.addEventListener('contextmenu', (event) => event.preventDefault());
    canvas.addEventListener('dblclick', () => tools?.finish());
    canvas.addEventListener('pointerdown', (event) => this.down(pane, event));
    canvas.addEventListener('pointermove', (event) => this.move(pane, event));
    for (const name of ['pointerup', 'pointercancel']) canvas.addEventListener(name, (event) => this.up(pane, event));
    canvas.addEventListener('pointerleave', (event) => {
      if (this.pointers.size) return;
      // A finger that is lifted leaves its read-out, which it hid while it was down.
      if (event.pointerType !== 'touch') this.readout(null);
      tools?.hover(null);
      this.draw();
    });
  }

  down(pane, event) {
    event.preventDefault();
    if (document.activeElement && document.activeElement !== document.body) document.activeElement.blur();
    pane.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, [event.clientX, event.clientY]);
    this.readout(pane, ...this.at(pane, event));
    if (this.pointers.size === 2) {
      if (this.gesture === 'tool') pane.tools.cancel();
      this.gesture = 'pinch';
    } else if (this.pointers.size === 1) {
      const drag = event.button === 1 || this.panning || !pane.tools?.ready();
      this.gesture = drag ? 'pan' : 'tool';
      if (!drag) pane.tools.down(this.at(pane, event), event);
    }
  }

  move(pane, event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) {
      this.hover(pane, event);
      return;
    }
    const now = [event.clientX, event.clientY];
    if (this.gesture === 'pan') this.pan(pane, now[0] - before[0], now[1] - before[1]);
    else if (this.gesture === 'tool') {
      const events = event.getCoalescedEvents?.() ?? [];
      for (const one of events.length ? events : [event]) pane.tools.move(this.at(pane, one));
    } else if (this.gesture === 'pinch' && this.pointers.size === 2) {
      const [other] = [...this.pointers].filter(([id]) => id !== event.pointerId).map(([, place]) => place);
      const far = (a) => Math.hypot(a[0] - other[0], a[1] - other[1]) || 1;
      this.pan(pane, (now[0] - before[0]) / 2, (now[1] - before[1]) / 2);
      const middle = { clientX: (now[0] + other[0]) / 2, clientY: (now[1] + other[1]) / 2 };
      this.zoomAt(pane, this.at(pane, middle), far(now) / far(before));
    }
    this.pointers.set(event.pointerId, now);
    this.hover(pane, event);
  }

  hover(pane, event) {
    const place = this.at(pane, event);
    this.readout(pane, ...place);
    if (pane.tools) { pane.tools.hover(place); this.draw(); }
  }

  up(pane, event) {
    if (!this.pointers.delete(event.pointerId)) return;
    if (this.gesture === 'tool') {
      if (event.type === 'pointercancel') pane.tools.cancel();
      else pane.tools.up(this.at(pane, event), event);
    }
    // After a pinch the finger that stays must not begin to paint.
    if (this.pointers.size === 0) this.gesture = null;
    else this.gesture = 'rest';
  }
}
