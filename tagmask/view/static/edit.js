// Correcting a mask: the tools' strokes, clicks that the server spreads, undo, and the draft that survives a reload.
import { click, saveMask } from './api.js';
import { say, sayError } from './dom.js';
import { dropDraft, readDraft, writeDraft } from './draft.js';
import { drawMarks } from './marks.js';
import { difference, drawSegment, fillPolygon, flood, paste } from './raster.js';

const MEMORY = 128 * 2 ** 20;
const STILL = 6;
const CLOSE = 12;
const BRUSHES = new Set(['brush', 'eraser', 'unsure']);

export class Editor {
  // painted(box): pixels changed; changed(): anything to show in the toolbar changed.
  constructor(title, { painted, changed }) {
    Object.assign(this, { title, painted, changed, tool: 'click', label: 1, size: 12, enabled: false });
    this.close();
    window.addEventListener('pagehide', () => this.keepDraft());
  }

  close() {
    this.n = null;
    this.map = null;
    this.forget();
  }

  forget() {
    this.history = [];
    this.position = 0;
    this.savedAt = 0;
    this.points = [];
    this.stroke = null;
    this.pointer = null;
    this.ticket = (this.ticket ?? 0) + 1;
    this.pending = null;
    this.drafted = false;
  }

  async open(n, map) {
    this.close();
    this.n = n;
    this.map = map;
    this.saved = map.labels.slice();
    this.changed();
    const old = await readDraft(this.title, n);
    if (this.map !== map || old?.width !== map.width || old.height !== map.height) return;
    this.drafted = true;
    this.apply(old.labels);
    if (this.dirty) say('Your unsaved strokes are back.');
    else dropDraft();
  }

  get dirty() { return this.map !== null && this.position !== this.savedAt; }

  get seeds() { return this.history[this.position - 1]?.click?.seeds ?? []; }

  get canRedo() { return this.position < this.history.length; }

  get canUndo() { return this.position > 0 || this.points.length > 0; }

  // --- history ---

  push(entry) {
    this.history.length = this.position;
    if (this.savedAt > this.position) this.savedAt = -1;
    this.history.push(entry);
    this.position += 1;
    const bytes = ({ patch }) => (patch ? 2 * patch.after.length : 0);
    let sum = this.history.reduce((all, one) => all + bytes(one), 0);
    while (sum > MEMORY && this.history.length > 1) {
      sum -= bytes(this.history.shift());
      this.position -= 1;
      this.savedAt = Math.max(-1, this.savedAt - 1);
    }
    this.touched();
  }

  // Make these the labels, as one stroke.
  apply(labels) {
    const patch = difference(this.map.labels, labels, this.map.width);
    if (!patch) { this.changed(); return; }
    this.map.labels.set(labels);
    this.painted(patch.box);
    this.push({ patch });
  }

  finishStroke(before) {
    const patch = difference(before, this.map.labels, this.map.width);
    if (!patch) return;
    this.painted(patch.box);
    this.push({ patch });
  }

  put({ box }, piece) {
    paste(this.map, box, piece);
    this.painted(box);
  }

  undo() {
    if (this.stroke) return;
    if (this.points.length) { this.points.pop(); this.changed(); return; }
    if (this.position === 0) return;
    this.settle();
    const { patch } = this.history[this.position - 1];
    this.position -= 1;
    if (patch) this.put(patch, patch.before);
    // A click whose answer was overtaken by the next click has not been applied yet.
    const top = this.history[this.position - 1];
    if (top?.click && !top.patch) this.spread(top);
    this.touched();
  }

  redo() {
    if (this.stroke || !this.canRedo) return;
    this.settle();
    const entry = this.history[this.position];
    this.position += 1;
    if (entry.patch) this.put(entry.patch, entry.patch.after);
    else if (entry.click) this.spread(entry);
    this.touched();
  }

  touched() {
    clearTimeout(this.keeping);
    this.keeping = setTimeout(() => this.keepDraft(), 300);
    this.changed();
  }

  keepDraft() {
    clearTimeout(this.keeping);
    if (this.map === null) return;
    if (this.dirty) writeDraft(this.title, this.n, this.map);
    else if (this.drafted) dropDraft();
    this.drafted = this.dirty;
  }

  // Whoever asks while a save is on its way gets that one.
  save() {
    this.saving ??= this.send().finally(() => { this.saving = null; this.changed(); });
    this.changed();
    return this.saving;
  }

  async send() {
    const { n } = this;
    this.drop();
    while (this.pending && this.n === n) await this.pending;
    if (this.n !== n || !this.dirty) return null;
    const [position, labels] = [this.position, this.map.labels.slice()];
    const answer = await saveMask(n, { ...this.map, labels });
    if (this.n === n) {
      this.savedAt = position;
      this.saved = labels;
      this.keepDraft();
    }
    return answer;
  }

  discard() {
    this.map.labels.set(this.saved);
    this.forget();
    dropDraft();
    this.painted();
    this.changed();
  }

  // --- clicks ---

  seed([x, y], label) {
    const top = this.history[this.position - 1]?.click;
    const entry = {
      patch: null,
      click: { base: top?.base ?? this.map.labels.slice(), seeds: [...(top?.seeds ?? []), [Math.floor(x), Math.floor(y), label]] },
    };
    this.push(entry);
    this.spread(entry);
  }

  settle() {
    this.ticket += 1;
    this.pending = null;
  }

  spread(entry) {
    this.settle();
    const { ticket } = this;
    const mine = () => this.ticket === ticket && this.history[this.position - 1] === entry;
    this.pending = click(this.n, entry.click.seeds, { ...this.map, labels: entry.click.base }).then(({ labels }) => {
      if (!mine()) return;
      this.pending = null;
      const before = this.map.labels.slice();
      this.map.labels.set(labels);
      entry.patch = difference(before, labels, this.map.width) ?? { box: [0, 0, 0, 0], before: [], after: [] };
      // Later clicks were patches of another state: redo asks for them again.
      for (const later of this.history.slice(this.position)) if (later.click) later.patch = null;
      this.painted(entry.patch.box);
      this.touched();
    }, (error) => {
      if (!mine()) return;
      this.pending = null;
      this.history.splice(this.position - 1, 1);
      this.position -= 1;
      const top = this.history[this.position - 1];
      if (top?.click && !top.patch) this.spread(top);
      this.touched();
      sayError(error);
    });
    this.changed();
  }

  // --- pointers ---

  ready() { return this.enabled && this.map !== null && !this.saving; }

  inside([x, y]) { return x >= 0 && y >= 0 && x < this.map.width && y < this.map.height; }

  down(place, event) {
    if (this.pending && this.tool !== 'click') { say('One moment: the last click is still on its way.'); return; }
    const other = event.button === 2 || event.shiftKey;
    this.stroke = { other, from: [event.clientX, event.clientY], last: place };
    if (!BRUSHES.has(this.tool)) return;
    this.stroke.label = this.tool === 'unsure' ? 255 : this.tool === 'eraser' || other ? 0 : this.label;
    this.stroke.before = this.map.labels.slice();
    this.move(place);
  }

  move(place) {
    const { stroke } = this;
    if (!stroke?.before) return;
    this.painted(drawSegment(this.map, stroke.last, place, this.size, stroke.label));
    stroke.last = place;
  }

  up(place, event) {
    const { stroke } = this;
    this.stroke = null;
    if (!stroke) return;
    if (stroke.before) { this.finishStroke(stroke.before); return; }
    const still = Math.hypot(event.clientX - stroke.from[0], event.clientY - stroke.from[1]) <= STILL;
    if (!still || !this.inside(place)) return;
    const label = stroke.other ? 0 : this.label;
    if (this.tool === 'click') this.seed(place, label);
    else if (this.tool === 'fill') {
      const before = this.map.labels.slice();
      flood(this.map, Math.floor(place[0]), Math.floor(place[1]), label);
      this.finishStroke(before);
    } else if (this.tool === 'polygon') this.corner(place);
  }

  cancel() {
    const before = this.stroke?.before;
    this.stroke = null;
    if (before) { this.map.labels.set(before); this.painted(); }
  }

  hover(place) { this.pointer = place; }

  corner(place) {
    const [first] = this.points;
    const near = first && Math.hypot(place[0] - first[0], place[1] - first[1]) * (this.scale ?? 1) < CLOSE;
    if (near && this.points.length > 2) this.finish();
    else this.points.push(place);
    this.changed();
  }

  // Close the polygon.
  finish() {
    if (this.points.length > 2) {
      const before = this.map.labels.slice();
      fillPolygon(this.map, this.points, this.label);
      this.points = [];
      this.finishStroke(before);
    }
    this.changed();
  }

  drop() {
    const any = this.points.length > 0;
    this.points = [];
    this.changed();
    return any;
  }

  setTool(tool) {
    this.drop();
    this.tool = tool;
    this.changed();
  }

  setSize(size) {
    this.size = Math.min(200, Math.max(1, Math.round(size)));
    this.changed();
  }

  draw(context, to, scale) {
    this.scale = scale;
    if (!this.enabled) return;
    drawMarks(context, this, BRUSHES.has(this.tool), to, scale);
  }
}
