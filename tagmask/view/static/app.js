// State, routing by the hash, keyboard, and decisions.
import { getRun, isStatic, news, review } from './api.js';
import { h, button, say, sayError } from './dom.js';
import { createGrid, readQuery } from './grid.js';
import { PhotoList } from './list.js';
import { createPhoto } from './photo.js';

const POLL = 5000;

const KEYS = {
  Grid: [['← → ↑ ↓', 'move between photos'], ['Home, End', 'first, last photo'], ['Enter', 'open the photo'], ['/', 'search a name']],
  Both: [['a, r, u', 'accept, reject, undo the last decision'], ['?', 'this help']],
  Photo: [['j, ←', 'previous photo'], ['k, →', 'next photo'], ['Esc', 'back to the grid'], ['m, p, f, t', 'mask, prediction, refined, truth'],
    ['s', 'side by side'], ['c', 'compare two runs'], ['1–9', 'show or hide a class'], ['Wheel, pinch', 'zoom'],
    ['Space + drag, middle button, two fingers', 'move the photo'], ['0', 'whole photo']],
  Editing: [['g', 'add a tag'], ['v, b, e', 'click, brush, eraser'], ['i, y, n', 'fill, polygon, unsure'], ['[ and ]', 'smaller, larger brush'],
    ['Right click, Shift', 'background instead of the class'], ['Enter, Esc', 'close, drop a polygon'],
    ['Ctrl+Z, Ctrl+Shift+Z', 'undo, redo a stroke'], ['Ctrl+S', 'save the mask']],
};

function createHelp(editable) {
  const parts = Object.entries(KEYS).filter(([title]) => editable || title !== 'Editing');
  const dialog = h('dialog', { class: 'help', test: 'help-dialog', 'aria-label': 'Keys' },
    h('h2', {}, 'Keys'),
    h('div', { class: 'keys' }, parts.map(([title, keys]) => h('section', {}, h('h3', {}, title),
      h('dl', {}, keys.flatMap(([key, what]) => [h('dt', {}, h('kbd', {}, key)), h('dd', {}, what)]))))),
    button('Close', 'help-close', () => dialog.close()));
  return dialog;
}

function parseHash(hash) {
  const [path, text] = hash.replace(/^#\/?/, '').split('?');
  const params = new URLSearchParams(text ?? '');
  const at = params.has('at') ? Number(params.get('at')) : null;
  const photo = path.match(/^photo\/(\d+)$/);
  return { n: photo ? Number(photo[1]) : null, params, at: Number.isInteger(at) && at >= 0 ? at : null };
}

function makeHash(n, query, at) {
  const params = new URLSearchParams(query);
  if (params.get('sort') === 'place') params.delete('sort');
  if (at !== null && at >= 0) params.set('at', at);
  const text = params.toString();
  return `#/${n === null ? '' : `photo/${n}`}${text ? `?${text}` : ''}`;
}

async function start() {
  const run = await getRun();
  document.title = run.title;
  let here = null;

  const list = new PhotoList(() => grid.render());
  const help = createHelp(run.editable);
  const openHelp = () => { if (!help.open) help.showModal(); };

  function applied({ row, journal }) {
    list.update(row);
    photo.update(row, journal).catch(sayError);
  }

  const WORDS = { accept: 'accepted', reject: 'rejected', undo: 'undone' };
  async function send(n, body, words) {
    try {
      applied(await review(n, body));
      say(words);
    } catch (error) { sayError(error); }
  }
  const decide = (row, action) => send(row.n, { action }, `${row.id.split('/').pop()}: ${WORDS[action]}.`);
  const setTags = (n, tags) => send(n, { action: 'tags', tags }, 'Tags changed.');

  const grid = createGrid({
    run, list, decide, help: openHelp,
    open(n, index) {
      history.replaceState(null, '', makeHash(null, list.query, index));
      travel(makeHash(n, list.query, index));
    },
    filter: (query) => travel(makeHash(null, query, null), true),
  });
  const photo = createPhoto({
    run, list, decide, setTags, applied, help: openHelp,
    back: () => travel(makeHash(null, list.query, photo.place)),
    go: (n, index) => travel(makeHash(n, list.query, index), true),
  });

  async function travel(hash, instead = false) {
    if (!await photo.mayLeave()) return;
    history[instead ? 'replaceState' : 'pushState'](null, '', hash);
    route();
  }

  function route() {
    const before = here;
    here = location.hash;
    const { n, params, at } = parseHash(here);
    const fresh = list.set(readQuery(params, run));
    if (n === null) {
      photo.hide();
      grid.show(fresh, before === here ? null : at);
    } else {
      grid.hide();
      photo.show(n, at ?? -1);
    }
  }

  // Back, forward and typed addresses: the address has changed already, so put it back while asking.
  window.addEventListener('hashchange', async () => {
    const wanted = location.hash;
    if (wanted === here) return;
    if (photo.editor.dirty && parseHash(wanted).n !== photo.editor.n) {
      history.replaceState(null, '', here);
      if (!await photo.mayLeave()) return;
      history.replaceState(null, '', wanted);
    }
    route();
  });

  window.addEventListener('beforeunload', (event) => { if (photo.editor.dirty) event.preventDefault(); });

  const page = () => (grid.element.hidden ? photo : grid);
  document.addEventListener('keydown', (event) => {
    if (help.open || event.defaultPrevented || event.isComposing) return;
    if (event.ctrlKey || event.metaKey) {
      if (page() === photo) photo.control(event);
      return;
    }
    if (event.altKey) return;
    const { tagName, type } = event.target;
    const typing = tagName === 'SELECT' || tagName === 'TEXTAREA' || (tagName === 'INPUT' && !['checkbox', 'range'].includes(type));
    if (typing) {
      if (event.key === 'Escape') event.target.blur();
      return;
    }
    // Arrows move a slider, Space and Enter press what has the focus.
    if (type === 'range' && /^(Arrow|Page|Home|End)/.test(event.key)) return;
    if (event.key === 'Enter' && ['BUTTON', 'A', 'SUMMARY'].includes(tagName)) return;
    if (event.key === '?') openHelp();
    else page().key(event);
  });
  document.addEventListener('keyup', (event) => { if (event.key === ' ') photo.release(); });
  window.addEventListener('blur', () => photo.release());

  async function poll() {
    if (document.visibilityState !== 'visible') return;
    try {
      if (!await news()) return;
      if (grid.element.hidden) { list.stale = true; await photo.poll(); } else await list.refresh();
    } catch (error) { sayError(error); }
  }
  if (!isStatic) {
    await poll();
    setInterval(poll, POLL);
    document.addEventListener('visibilitychange', poll);
  }

  document.getElementById('start').remove();
  document.getElementById('app').append(grid.element, photo.element, help);
  window.tagmaskView = { labelAt: photo.labelAt };
  route();
}

start().catch((error) => {
  sayError(error);
  document.getElementById('start').classList.remove('late');
});
