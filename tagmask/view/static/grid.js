// The grid: filters above, and thumbnails of which only those near the viewport exist.
import { thumbUrl } from './api.js';
import { h, button, say } from './dom.js';

const GAP = 8;
const NARROWEST = 150;
const TEXT = 74;
const DECISIONS = { accept: ['✓', 'accepted'], reject: ['✗', 'rejected'] };
const SORTS = { place: 'place', worth: 'worth a review', doubt: 'doubt', iou: 'IoU', disagreement: 'disagreement', suspicion: 'suspicion' };
const FILTERS = ['sort', 'class', 'tag', 'split', 'decision', 'suspect', 'text'];

export function readQuery(params, run) {
  const query = {};
  for (const name of FILTERS) if (params.get(name)) query[name] = params.get(name);
  query.sort = run.sorts.includes(query.sort) ? query.sort : 'place';
  return query;
}

export const shortName = (id) => id.split('/').pop();

export function badges(row) {
  const list = row.decision ? [DECISIONS[row.decision]] : [];
  if (row.edited) list.push(['✎', 'edited']);
  return list.map(([sign, word]) => h('span', { class: `badge ${word}`, title: word },
    h('span', { 'aria-hidden': 'true' }, sign), h('span', { class: 'unseen' }, ` ${word}`)));
}

export function suspects(row, run) {
  return row.suspects.map(({ label, tag }) => (
    tag === 'given' ? `${run.classes[label]}? given, looks wrong` : `${run.classes[label]}? missing, looks right`));
}

const tagWords = (row, run) => {
  if (row.tags === null) return 'not tagged yet';
  return row.tags.map((label) => run.classes[label]).join(', ') || 'no tags';
};

export function figure(row, sort, run) {
  const number = (value) => (value === null ? '–' : value.toFixed(2));
  switch (sort) {
    case 'doubt': return `doubt ${number(row.doubt)}`;
    case 'worth': return `worth ${number(row.worth)}`;
    case 'iou': return `IoU ${number(row.iou)}`;
    case 'disagreement': return `disagrees ${row.disagreement ?? '–'}`;
    case 'suspicion': return suspects(row, run).join(', ') || 'no suspects';
    default: return row.split ?? '';
  }
}

function filterBar(run, changed) {
  const options = (any, pairs) => [[any, ''], ...pairs].map(([name, value]) => h('option', { value }, name));
  const select = (name, any, pairs) => h('select', { name, test: `filter-${name}`, onchange: changed }, options(any, pairs));
  const labels = run.classes.map((name, label) => [name, label]).slice(1);
  let typing = 0;
  const fields = {
    class: select('class', 'any', labels),
    tag: select('tag', 'any', labels),
    split: select('split', 'any', run.splits.map((name) => [name, name])),
    decision: select('decision', 'any', ['none', 'accepted', 'rejected', 'edited'].map((name) => [name, name])),
    suspect: h('input', { type: 'checkbox', test: 'filter-suspect', onchange: changed }),
    text: h('input', {
      type: 'search', test: 'filter-text', placeholder: 'part of the name',
      oninput: () => { clearTimeout(typing); typing = setTimeout(changed, 250); },
    }),
    sort: h('select', { test: 'sort', onchange: changed }, run.sorts.map((sort) => h('option', { value: sort }, SORTS[sort] ?? sort))),
  };
  const titles = { class: 'Class', tag: 'Tag', split: 'Split', decision: 'Decision', suspect: 'Suspects only', text: 'Name', sort: 'Sort by' };
  const form = h('form', { class: 'filters', id: 'filters', 'aria-label': 'Filters', onsubmit: (event) => event.preventDefault() },
    Object.entries(fields).map(([name, field]) => h('label', { class: `filter ${name}` }, h('span', {}, titles[name]), field)),
    button('Clear', 'clear', () => { for (const name of FILTERS) fields[name].value = name === 'sort' ? 'place' : ''; fields.suspect.checked = false; changed(); }));
  return {
    form,
    focusText: () => fields.text.focus(),
    show(query) {
      for (const name of FILTERS) if (name !== 'suspect' && fields[name] !== document.activeElement) fields[name].value = query[name] ?? '';
      fields.suspect.checked = Boolean(query.suspect);
    },
    read() {
      const query = {};
      for (const name of FILTERS) if (name !== 'suspect' && fields[name].value) query[name] = fields[name].value;
      if (fields.suspect.checked) query.suspect = '1';
      if (query.sort === 'place') delete query.sort;
      return query;
    },
  };
}

export function createGrid({ run, list, open, filter, decide, help }) {
  const cells = new Map();
  let current = 0;
  let currentPhoto = null;
  let shape = { columns: 1, width: 0, height: 0 };
  let awaitFocus = false;

  const bar = filterBar(run, () => filter(bar.read()));
  const total = h('span', { class: 'total', test: 'total', 'aria-live': 'polite' });
  const more = button('Filters', 'filters', () => {
    const shown = bar.form.classList.toggle('open');
    more.setAttribute('aria-expanded', String(shown));
  }, { class: 'more', 'aria-expanded': 'false', 'aria-controls': 'filters' });
  const spacer = h('div', { class: 'spacer', role: 'list', 'aria-label': 'Photos' });
  const scroller = h('div', { class: 'scroller', test: 'grid', tabindex: '-1' }, spacer);
  const empty = h('p', { class: 'empty', hidden: true }, 'No photo fits these filters.');
  const element = h('main', { class: 'grid', hidden: true },
    h('header', { class: 'top' }, h('h1', {}, run.title), total, run.editable && run.author ? h('span', { class: 'quiet' }, `you are ${run.author}`) : null, more, button('?', 'help', help, { 'aria-label': 'Keys' })),
    bar.form, empty, scroller);

  function measure() {
    const width = scroller.clientWidth - 2 * GAP;
    const columns = Math.max(2, Math.floor((width + GAP) / (NARROWEST + 40 + GAP)));
    const cell = (width - GAP * (columns - 1)) / columns;
    shape = { columns, width: cell, height: Math.round(cell * 0.72) + TEXT };
  }

  function fill(cell, index, row) {
    const mark = row ? JSON.stringify([row, list.query.sort]) : '';
    if (cell.mark === mark) return;
    cell.mark = mark;
    const { link } = cell;
    if (!row) {
      link.dataset.testid = '';
      link.removeAttribute('href');
      link.replaceChildren(h('span', { class: 'unseen' }, 'loading'));
      return;
    }
    const url = thumbUrl(row);
    if (cell.url !== url) {
      cell.url = url;
      cell.image = h('img', { src: url, alt: '', loading: 'lazy', decoding: 'async', draggable: 'false' });
    }
    link.dataset.testid = `cell-${row.n}`;
    link.href = `#/photo/${row.n}`;
    link.replaceChildren(cell.image,
      h('span', { class: 'name' }, h('span', { class: 'elided', title: row.id }, shortName(row.id)), badges(row)),
      h('span', { class: 'elided tags' }, tagWords(row, run)),
      h('span', { class: 'elided figure' }, figure(row, list.query.sort, run)));
  }

  function makeCell(index) {
    const link = h('a', {
      tabindex: index === current ? '0' : '-1',
      onclick: (event) => {
        if (event.ctrlKey || event.metaKey || event.shiftKey) return;
        event.preventDefault();
        choose(index, false);
        const row = list.get(index);
        if (row) open(row.n, index);
      },
      onfocus: () => choose(index, false),
    });
    const item = h('div', { class: 'cell', role: 'listitem' }, link);
    return { item, link, mark: null, url: null, image: null };
  }

  function render() {
    if (element.hidden) return;
    total.textContent = list.total === null ? '…' : `${list.total.toLocaleString('en')} ${list.total === 1 ? 'photo' : 'photos'}`;
    empty.hidden = list.total !== 0;
    if (list.total === null) { list.need(0, 0); clear(); return; }
    measure();
    const { columns, width, height } = shape;
    const pitch = height + GAP;
    spacer.style.height = `${Math.ceil(list.total / columns) * pitch + GAP}px`;
    const first = Math.max(0, Math.floor(scroller.scrollTop / pitch) - 1) * columns;
    const last = Math.min(list.total, (Math.ceil((scroller.scrollTop + scroller.clientHeight) / pitch) + 1) * columns) - 1;
    for (const [index, { item, link }] of cells) {
      const keep = link === document.activeElement && index < list.total;
      if ((index < first || index > last) && !keep) { item.remove(); cells.delete(index); }
    }
    for (let index = first; index <= last; index += 1) {
      let cell = cells.get(index);
      if (!cell) {
        cell = makeCell(index);
        cells.set(index, cell);
        spacer.append(cell.item);
      }
      fill(cell, index, list.get(index));
      cell.item.setAttribute('aria-setsize', list.total);
      cell.item.setAttribute('aria-posinset', index + 1);
    }
    for (const [index, { item }] of cells) {
      item.style.width = `${width}px`;
      item.style.height = `${height}px`;
      item.style.transform = `translate(${GAP + (index % columns) * (width + GAP)}px, ${GAP + Math.floor(index / columns) * pitch}px)`;
    }
    if (list.total) list.need(first, last);
    follow();
    if (awaitFocus) { awaitFocus = false; choose(Math.min(current, list.total - 1), true); }
  }

  // When rows have moved, the focus goes with its photo, so that no key decides about another one.
  function follow() {
    const row = list.get(current);
    if (!row || row.n === currentPhoto || awaitFocus) return;
    if (currentPhoto === null) { currentPhoto = row.n; return; }
    const focused = cells.get(current)?.link === document.activeElement;
    const to = list.find(currentPhoto);
    if (to >= 0) choose(to, focused);
    else {
      // The photo is no longer in this filter: nothing has the focus until the next arrow key.
      currentPhoto = row.n;
      if (focused) document.activeElement.blur();
    }
  }

  function clear() {
    for (const { item } of cells.values()) item.remove();
    cells.clear();
  }

  function choose(index, focus) {
    if (index < 0) return;
    const old = cells.get(current);
    if (old) old.link.tabIndex = -1;
    current = index;
    currentPhoto = list.get(index)?.n ?? null;
    if (focus) reveal(index);
    const cell = cells.get(index);
    if (!cell) return;
    cell.link.tabIndex = 0;
    if (focus) cell.link.focus({ preventScroll: true });
  }

  function reveal(index) {
    const pitch = shape.height + GAP;
    const top = Math.floor(index / shape.columns) * pitch;
    if (top < scroller.scrollTop) scroller.scrollTop = top;
    else if (top + pitch + GAP > scroller.scrollTop + scroller.clientHeight) scroller.scrollTop = top + pitch + GAP - scroller.clientHeight;
    if (!cells.has(index)) render();
  }

  let drawing = 0;
  const later = () => { cancelAnimationFrame(drawing); drawing = requestAnimationFrame(render); };
  scroller.addEventListener('scroll', later, { passive: true });
  new ResizeObserver(later).observe(scroller);

  function key(event) {
    const rows = Math.max(1, Math.floor(scroller.clientHeight / (shape.height + GAP)));
    const moves = {
      ArrowLeft: -1, ArrowRight: 1, ArrowUp: -shape.columns, ArrowDown: shape.columns,
      PageUp: -rows * shape.columns, PageDown: rows * shape.columns, Home: -Infinity, End: Infinity,
    };
    if (event.key in moves && list.total) {
      event.preventDefault();
      // Without a focused photo the first arrow only shows which one is the current one.
      const jump = Number.isFinite(moves[event.key]);
      const here = cells.get(current)?.link === document.activeElement;
      const to = jump && !here ? current : current + moves[event.key];
      choose(Math.max(0, Math.min(list.total - 1, to)), true);
    } else if (event.key === '/') {
      event.preventDefault();
      bar.form.classList.add('open');
      bar.focusText();
    } else if (run.editable && ['a', 'r', 'u'].includes(event.key)) {
      const row = list.get(current);
      if (cells.get(current)?.link !== document.activeElement || !row) say('Choose a photo first, with the arrow keys.');
      else decide(row, { a: 'accept', r: 'reject', u: 'undo' }[event.key]);
    }
  }

  return {
    element,
    key,
    render,
    show(fresh, at) {
      element.hidden = false;
      bar.show(list.query);
      if (fresh) { clear(); scroller.scrollTop = 0; current = 0; currentPhoto = null; }
      const stale = !fresh && list.stale;
      if (at !== null) { current = stale ? list.moved(at) : at; awaitFocus = true; }
      if (stale && at !== null) list.drop();
      else if (stale) list.refresh();
      render();
    },
    hide() { element.hidden = true; },
  };
}
