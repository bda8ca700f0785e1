// The photos of the current filter and sort: pages of 100, the last 40 used are kept.
import { getPhotos, matches } from './api.js';
import { sayError } from './dom.js';

const SIZE = 100;
const KEEP = 40;

export class PhotoList {
  constructor(changed) {
    this.changed = changed;
    this.query = null;
    this.drop();
  }

  drop() {
    for (const { stop } of this.loading?.values() ?? []) stop.abort();
    this.pages = new Map();
    this.loading = new Map();
    this.total = null;
    this.stale = false;
    this.wanted = [0];
  }

  set(query) {
    if (JSON.stringify(query) === JSON.stringify(this.query)) return false;
    this.query = query;
    this.drop();
    return true;
  }

  get(index) {
    return this.pages.get(Math.floor(index / SIZE))?.[index % SIZE];
  }

  // Have these rows ready; whatever is on its way for other places is no longer needed.
  need(first, last) {
    const from = Math.floor(Math.max(0, first) / SIZE);
    const to = Math.floor(Math.max(0, last) / SIZE);
    this.wanted = [];
    for (let page = from; page <= to; page += 1) this.wanted.push(page);
    const missing = this.wanted.some((page) => !this.pages.has(page));
    if (missing && this.stale) { this.refresh(); return; }
    for (const [page, { stop, held }] of this.loading) {
      if (!held && !this.wanted.includes(page)) { stop.abort(); this.loading.delete(page); }
    }
    for (const page of this.wanted) {
      const rows = this.pages.get(page);
      if (!rows) this.load(page).catch(sayError);
      else { this.pages.delete(page); this.pages.set(page, rows); }
    }
  }

  load(page, held = false) {
    const under = this.loading.get(page);
    if (under) { under.held ||= held; return under.done; }
    const stop = new AbortController();
    const done = this.fetch(page, stop).finally(() => {
      if (this.loading.get(page)?.stop === stop) this.loading.delete(page);
    });
    this.loading.set(page, { stop, held, done });
    return done;
  }

  async fetch(page, stop) {
    // While the scroll bar is dragged, most pages are gone again before they are asked for.
    if (this.total !== null) await new Promise((resolve) => { setTimeout(resolve, 60); });
    if (stop.signal.aborted) throw new DOMException('', 'AbortError');
    const { total, rows } = await getPhotos(this.query, page * SIZE, SIZE, stop.signal);
    if (stop.signal.aborted) throw new DOMException('', 'AbortError');
    this.total = total;
    this.pages.delete(page);
    this.pages.set(page, rows);
    while (this.pages.size > KEEP) this.pages.delete(this.pages.keys().next().value);
    this.changed();
  }

  // Fetch again what is shown (the old rows stay until the new ones are here) and forget the rest.
  async refresh() {
    this.stale = false;
    for (const page of this.pages.keys()) if (!this.wanted.includes(page)) this.pages.delete(page);
    for (const [page, { stop }] of this.loading) { stop.abort(); this.loading.delete(page); }
    await Promise.all(this.wanted.map((page) => this.load(page))).catch(sayError);
  }

  async row(index) {
    if (index < 0) return null;
    if (!this.get(index)) await this.load(Math.floor(index / SIZE), true);
    return this.get(index) ?? null;
  }

  update(row) {
    // A decision may move the photo out of the filter: pages fetched from now on would not fit the old ones.
    this.stale = true;
    for (const rows of this.pages.values()) {
      const at = rows.findIndex((other) => other.n === row.n);
      if (at >= 0) rows[at] = row;
    }
    this.changed();
  }

  // Where photo n is among the rows at hand, else -1.
  find(n) {
    for (const [page, rows] of this.pages) {
      const at = rows.findIndex((row) => row.n === n);
      if (at >= 0) return page * SIZE + at;
    }
    return -1;
  }

  // Where photo n is: at the hint, on a page at hand, or next to the hint; -1 if it is nowhere near.
  async locate(n, hint) {
    if (this.get(hint)?.n === n) return hint;
    const known = this.find(n);
    if (known >= 0) return known;
    const plain = Object.entries(this.query).every(([key, value]) => key === 'sort' && value === 'place');
    const guess = plain ? n : hint;
    const page = Math.floor(guess / SIZE);
    for (const near of [page, page - 1, page + 1]) {
      if (near < 0) continue;
      await this.row(near * SIZE);
      const at = (this.pages.get(near) ?? []).findIndex((row) => row.n === n);
      if (at >= 0) return near * SIZE + at;
    }
    return -1;
  }

  // Rows that left the filter since they were fetched have moved the later ones up.
  moved(index) {
    let to = index;
    for (const [page, rows] of this.pages) {
      rows.forEach((row, i) => { if (page * SIZE + i < index && !matches(row, this.query)) to -= 1; });
    }
    return to;
  }

  async step(index) {
    let to = index;
    if (this.stale && !this.get(to)) {
      to = this.moved(index);
      this.drop();
    }
    const row = await this.row(to);
    return row && { row, index: to };
  }
}
