// The elements of the photo page.
import { h, button } from './dom.js';

export const KIND_KEYS = { m: 'mask', p: 'prediction', f: 'refined', t: 'truth' };

export function createFrame(run, stage, parts, on) {
  const keyOf = (kind) => Object.keys(KIND_KEYS).find((key) => KIND_KEYS[key] === kind) ?? '';
  const name = h('h1', { class: 'elided', tabindex: '-1' });
  const place = h('span', { class: 'total' });
  const marks = h('span', { class: 'marks' });
  const previous = button('‹', 'previous', () => on.step(-1), { 'aria-label': 'Previous photo', title: 'Previous photo (j, ←)' });
  const next = button('›', 'next', () => on.step(1), { 'aria-label': 'Next photo', title: 'Next photo (k, →)' });
  const act = (label, action, title) => button(label, action, () => on.mark(action), { title, class: `act ${action}` });
  const acts = run.editable ? [act('✓ Accept', 'accept', 'Accept (a)'), act('✗ Reject', 'reject', 'Reject (r)'),
    act('Undo', 'undo', 'Undo the last decision (u)')] : [];
  const kinds = Object.fromEntries(run.kinds.map((kind) => [kind, button(kind[0].toUpperCase() + kind.slice(1), `kind-${kind}`,
    () => on.setKind(kind), { title: `Show the ${kind} (${keyOf(kind)})` })]));
  const side = button('Side by side', 'side', () => on.setView('side'), { title: 'All maps next to each other (s)' });
  const compare = button('Compare runs', 'compare', () => on.setView('compare'), { title: 'The same map of both runs (c)' });
  const opacity = h('input', { type: 'range', min: 0, max: 100, value: 50, test: 'opacity', oninput: () => on.opacity(opacity.value / 100) });
  const figures = h('dl', { class: 'figures' });
  const journal = h('ul', { class: 'journal' });
  const readout = h('p', { class: 'readout', test: 'readout' });
  const element = h('main', { class: 'photo', hidden: true },
    h('header', { class: 'top' }, button('← Grid', 'back', on.back, { title: 'Back to the grid (Esc)' }), name, marks, place,
      h('div', { class: 'group' }, previous, next), h('div', { class: 'group' }, acts), button('?', 'help', on.help, { 'aria-label': 'Keys' })),
    h('div', { class: 'work' },
      h('div', { class: 'left' },
        h('div', { class: 'viewbar' },
          h('div', { class: 'group', role: 'group', 'aria-label': 'Label map' }, Object.values(kinds)),
          h('div', { class: 'group' }, side, run.runs.length > 1 ? compare : null),
          h('label', { class: 'line' }, h('span', {}, 'Opacity'), opacity)),
        h('div', { class: 'frame' }, stage.element, readout)),
      h('aside', { class: 'panel' }, parts,
        h('section', { 'aria-label': 'Figures' }, h('h2', {}, 'Figures'), figures),
        h('section', { 'aria-label': 'History' }, h('h2', {}, 'History'), journal))));
  return { element, name, place, marks, previous, next, kinds, side, compare, figures, journal, readout };
}
