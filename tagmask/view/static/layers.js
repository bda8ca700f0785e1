// The layers of one photo, each fetched once, and what they say about a pixel.
import { getCam, getLayer, getSure } from './api.js';
import { className } from './panel.js';

export class Layers {
  constructor(n, version, kinds) {
    Object.assign(this, { n, version, kinds, kept: new Map() });
  }

  // wanted: a kind, 'sure', or 'cam' and a label.
  get(wanted, which) {
    const key = `${which} ${wanted}`;
    if (!this.kept.has(key)) {
      const promise = this.fetch(wanted, which);
      this.kept.set(key, promise.catch((error) => { this.kept.delete(key); throw error; }));
    }
    return this.kept.get(key);
  }

  fetch(wanted, which) {
    if (wanted === 'sure') return getSure(this.n, which);
    if (wanted.startsWith('cam')) return getCam(this.n, Number(wanted.slice(3)), which);
    return getLayer(this.n, wanted, which, this.version);
  }

  renew(version, kinds) {
    Object.assign(this, { version, kinds });
    for (const key of this.kept.keys()) if (!/cam|sure/.test(key)) this.kept.delete(key);
  }

  // Name first; the segmenter's confidence belongs to its own answer, which is named where it is another one.
  async describe(run, pane, x, y, early) {
    if (!pane || x < 0 || y < 0 || x >= pane.width || y >= pane.height) return '';
    const at = ({ labels, width, height }) => (
      labels[Math.floor((y / pane.height) * height) * width + Math.floor((x / pane.width) * width)]);
    if (pane.heat) return `${className(run, Number(pane.kind.slice(3)))} · activation ${(at(pane.heat) / 255).toFixed(2)}`;
    if (!pane.map) return '';
    const label = at(pane.map);
    const text = className(run, label);
    early(text);
    // Without predictions there is no segmenter that could be sure.
    const own = this.kinds.includes('prediction') ? this.get('prediction', pane.which) : null;
    const [sure, prediction] = await Promise.all([own && this.get('sure', pane.which), own]).catch(() => []);
    if (!sure) return text;
    const other = prediction && at(prediction) !== label ? `segmenter: ${className(run, at(prediction))}, ` : '';
    return `${text} · ${other}${(at(sure) / 255).toFixed(2)} sure`;
  }
}
