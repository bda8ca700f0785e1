// The buttons of the mask tools, and the class to paint with.
import { h, button, press } from './dom.js';

const TOOLS = {
  click: ['Click', 'v', 'A seed of the class that spreads over the object; right click or Shift: background'],
  brush: ['Brush', 'b', 'Paint the class; right click or Shift: background'],
  eraser: ['Eraser', 'e', 'Paint background'],
  fill: ['Fill', 'i', 'Give one connected region the class'],
  polygon: ['Polygon', 'y', 'Corners by clicks; Enter, a double click or the first corner closes it, Esc drops it'],
  unsure: ['Unsure', 'n', 'Paint "unsure"'],
};

export const TOOL_KEYS = Object.fromEntries(Object.entries(TOOLS).map(([tool, [, key]]) => [key, tool]));

export function createToolbar(run, editor, { save, takeOver }) {
  let tags = [];
  const tools = Object.entries(TOOLS).map(([tool, [label, key, title]]) => button(label, `tool-${tool}`,
    () => editor.setTool(tool), { title: `${title} (${key})`, 'data-tool': tool }));
  const paint = h('select', { test: 'paint', onchange: () => { editor.label = Number(paint.value); editor.changed(); } });
  const search = h('input', { type: 'search', class: 'find', placeholder: 'find', 'aria-label': 'Find a class to paint with', oninput: () => list() });
  const size = h('input', { type: 'range', min: 1, max: 200, test: 'size', oninput: () => editor.setSize(Number(size.value)) });
  const sizeText = h('output', {});
  const back = button('↶', 'stroke-undo', () => editor.undo(), { 'aria-label': 'Undo stroke', title: 'Undo stroke (Ctrl+Z)' });
  const forth = button('↷', 'stroke-redo', () => editor.redo(), { 'aria-label': 'Redo stroke', title: 'Redo stroke (Ctrl+Shift+Z)' });
  const keep = button('Save mask', 'save', save, { class: 'main', title: 'Ctrl+S' });
  const discard = button('Discard', 'discard', () => editor.discard());
  const close = button('Close shape', 'close-polygon', () => editor.finish());
  const swap = button('Edit this one', 'take-over', takeOver, { title: 'Make the map shown the mask, as a stroke that can be undone' });
  const hint = h('p', { class: 'hint' }, 'Tools work on the mask (m). ', swap);
  const element = h('section', { class: 'tools', 'aria-label': 'Mask tools' },
    h('div', { class: 'group', role: 'group', 'aria-label': 'Tool' }, tools), close,
    h('label', { class: 'line' }, h('span', {}, 'Class'), paint, run.classes.length > 12 ? search : null),
    h('label', { class: 'line size' }, h('span', {}, 'Size'), size, sizeText),
    h('div', { class: 'group' }, back, forth, keep, discard), hint);

  // Tags first; a search leaves the classes that contain the text.
  function list() {
    const text = search.value.trim().toLowerCase();
    const option = (label) => h('option', { value: label }, run.classes[label]);
    const fits = (label) => run.classes[label].toLowerCase().includes(text);
    const labels = [...run.classes.keys()];
    const others = [...labels.slice(1), 0].filter((label) => !tags.includes(label) && fits(label));
    const first = tags.filter(fits);
    if (![...first, ...others].length) return;
    paint.replaceChildren(...[['Tags', first], ['All classes', others]].filter(([, found]) => found.length)
      .map(([label, found]) => h('optgroup', { label }, found.map(option))));
    if (![...first, ...others].includes(editor.label)) editor.label = first[0] ?? others[0];
    paint.value = editor.label;
  }

  return {
    element,
    setTags(labels) {
      const added = labels.filter((label) => !tags.includes(label));
      tags = labels;
      if (!labels.includes(editor.label)) editor.label = added[0] ?? labels[0] ?? editor.label;
      list();
    },
    update(kind) {
      for (const one of tools) { press(one, one.dataset.tool === editor.tool); one.disabled = !editor.enabled; }
      paint.value = editor.label;
      size.value = editor.size;
      sizeText.textContent = `${editor.size} px`;
      back.disabled = !editor.enabled || !editor.canUndo;
      forth.disabled = !editor.enabled || !editor.canRedo;
      keep.disabled = !editor.dirty || Boolean(editor.saving);
      discard.disabled = keep.disabled;
      keep.classList.toggle('dirty', editor.dirty);
      close.hidden = editor.points.length < 3;
      hint.hidden = editor.enabled;
      swap.hidden = kind === null;
    },
  };
}
