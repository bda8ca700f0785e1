// The parts beside the photo: classes on and off, tags, figures, and what was decided so far.
import { h, button } from './dom.js';
import { suspects } from './grid.js';

export const className = (run, label) => (label === 255 ? 'unsure' : run.classes[label] ?? `label ${label}`);

// Classes of this photo come first, with a digit as their key; the others are folded away.
export function createClasses(run, toggled) {
  const hidden = new Set([0]);
  let first = [];
  const near = h('div', { class: 'toggles' });
  const far = h('div', { class: 'toggles' });
  const rest = h('details', {}, h('summary', {}, 'Other classes'), far);
  const element = h('section', { 'aria-label': 'Classes' }, h('h2', {}, 'Shown'), near, rest);

  function toggle(label) {
    if (!hidden.delete(label)) hidden.add(label);
    const box = element.querySelector(`[data-testid="toggle-${label}"]`);
    if (box) box.checked = !hidden.has(label);
    toggled();
  }

  function line(label, i) {
    const swatch = h('span', { class: label === 255 ? 'swatch hatched' : 'swatch', 'aria-hidden': 'true' });
    if (label !== 255) swatch.style.backgroundColor = run.colours[label];
    return h('label', { class: 'toggle' },
      h('input', { type: 'checkbox', test: `toggle-${label}`, checked: !hidden.has(label), onchange: () => toggle(label) }),
      swatch, h('span', { class: 'elided' }, className(run, label)), i < 9 ? h('kbd', {}, String(i + 1)) : null);
  }

  return {
    element,
    hidden,
    key: (digit) => { if (first[digit - 1] !== undefined) toggle(first[digit - 1]); },
    show(labels) {
      const of = (wanted) => [...run.classes.keys(), 255].filter((label) => labels.has(label) === wanted && label !== 0);
      const now = [...of(true), 0];
      if (near.childElementCount && String(now) === String(first)) return;
      first = now;
      near.replaceChildren(...first.map(line));
      far.replaceChildren(...of(false).map((label) => line(label, 9)));
      rest.hidden = far.childElementCount === 0;
    },
  };
}

// Chips that can be removed, and an input whose list of classes narrows while one types.
export function createTags(run, change) {
  let tags = [];
  let shown = [];
  let active = 0;
  const chips = h('div', { class: 'chips' });
  const options = h('ul', { class: 'options', role: 'listbox', id: 'tag-options', 'aria-label': 'Classes', hidden: true });
  const input = h('input', {
    test: 'tag-input', type: 'text', role: 'combobox', placeholder: 'add a tag', 'aria-label': 'Add a tag', autocomplete: 'off',
    'aria-expanded': 'false', 'aria-controls': 'tag-options', 'aria-autocomplete': 'list',
    oninput: () => { active = 0; list(); }, onfocus: () => { active = 0; list(); }, onblur: () => close(),
    onkeydown: (event) => {
      if (event.key === 'ArrowDown' || event.key === 'ArrowUp') {
        active = Math.max(0, Math.min(shown.length - 1, active + (event.key === 'ArrowDown' ? 1 : -1)));
        list();
      } else if (event.key === 'Enter') {
        if (shown.length && input.value.trim()) add(shown[active]);
      } else return;
      event.preventDefault();
    },
  });
  const element = h('section', { 'aria-label': 'Tags' }, h('h2', {}, 'Tags'), chips,
    run.editable ? h('div', { class: 'combo' }, input, options) : null);

  function close() {
    options.hidden = true;
    input.setAttribute('aria-expanded', 'false');
    input.removeAttribute('aria-activedescendant');
  }

  function list() {
    const text = input.value.trim().toLowerCase();
    const rank = (label) => {
      const name = run.classes[label].toLowerCase();
      if (name === text) return 0;
      return name.startsWith(text) ? 1 : 2;
    };
    shown = [...run.classes.keys()].filter((label) => label > 0 && !tags.includes(label) && run.classes[label].toLowerCase().includes(text))
      .sort((a, b) => rank(a) - rank(b) || a - b).slice(0, 50);
    options.replaceChildren(...shown.map((label, i) => h('li', {
      role: 'option', id: `tag-option-${i}`, 'aria-selected': String(i === active),
      onpointerdown: (event) => { event.preventDefault(); add(label); },
    }, run.classes[label])));
    options.hidden = shown.length === 0;
    input.setAttribute('aria-expanded', String(shown.length > 0));
    if (shown.length) input.setAttribute('aria-activedescendant', `tag-option-${active}`);
    options.children[active]?.scrollIntoView({ block: 'nearest' });
  }

  function add(label) {
    input.value = '';
    close();
    change([...tags, label].sort((a, b) => a - b));
  }

  return {
    element,
    focus: () => input.focus(),
    show(row) {
      tags = row.tags ?? [];
      const words = row.tags === null ? 'Nobody tagged this photo yet.' : 'No class is in this photo.';
      chips.replaceChildren(...(tags.length ? tags.map((label) => {
        const name = className(run, label);
        const remove = () => change(tags.filter((other) => other !== label));
        return h('span', { class: 'chip', test: `chip-${label}` }, name, run.editable
          ? button('×', null, remove, { 'aria-label': `Remove ${name}` }) : null);
      }) : [h('p', { class: 'quiet' }, words)]));
      // "Looked, and nothing is there" is an answer, too.
      if (row.tags === null && run.editable) chips.append(button('Nothing here', 'no-tags', () => change([])));
    },
  };
}

export function showFigures(element, row, run) {
  const number = (value) => (value === null ? '–' : value.toFixed(2));
  const names = (labels) => labels.map((label) => className(run, label)).join(', ') || '–';
  const lines = [['Split', row.split ?? '–'], ['IoU', number(row.iou)], ['Doubt', number(row.doubt)]];
  if (row.found !== null) lines.push(['In the mask', names(row.found)]);
  if (row.tags !== null && row.found !== null) {
    lines.push(['Tag without pixels', names(row.tags.filter((label) => !row.found.includes(label)))]);
    lines.push(['Pixels without tag', names(row.found.filter((label) => !row.tags.includes(label)))]);
  }
  for (const text of suspects(row, run)) lines.push(['Suspect', text]);
  element.replaceChildren(...lines.flatMap(([name, value]) => [h('dt', {}, name), h('dd', {}, value)]));
}

const ACTIONS = { accept: 'accepted', reject: 'rejected', tags: 'changed the tags', mask: 'drew the mask' };

function moment(time) {
  const date = new Date(time);
  return Number.isNaN(date.getTime()) ? String(time) : date.toLocaleString([], { dateStyle: 'short', timeStyle: 'short' });
}

export function showJournal(element, journal) {
  element.replaceChildren(...journal.slice(-30).reverse().map(({ action, time, author, undone }) => {
    const words = `${author ?? 'somebody'} ${ACTIONS[action] ?? action}`;
    return h('li', {}, undone ? h('del', {}, words) : words, undone ? ' (undone)' : '', h('span', { class: 'quiet' }, ` ${moment(time)}`));
  }));
  element.parentElement.hidden = journal.length === 0;
}
