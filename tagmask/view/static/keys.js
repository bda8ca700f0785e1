// The keys of the photo page.
import { KIND_KEYS } from './frame.js';
import { say } from './dom.js';
import { TOOL_KEYS } from './toolbar.js';

export function createKeys(run, { editor, stage, classes, tags, element, on }) {
  const plain = {
    s: () => on.setView('side'),
    c: () => on.setView('compare'),
    j: () => on.step(-1),
    k: () => on.step(1),
    ArrowLeft: () => on.step(-1),
    ArrowRight: () => on.step(1),
    0: () => stage.reset(),
    Escape: () => { if (!editor.drop()) on.back(); },
  };
  for (const [key, kind] of Object.entries(KIND_KEYS)) plain[key] = () => on.setKind(kind);
  for (let digit = 1; digit <= 9; digit += 1) plain[digit] = () => classes.key(digit);
  if (run.editable) {
    Object.assign(plain, {
      a: () => on.mark('accept'),
      r: () => on.mark('reject'),
      u: () => on.mark('undo'),
      g: () => tags.focus(),
      '[': () => editor.setSize(Math.min(editor.size - 1, editor.size / 1.2)),
      ']': () => editor.setSize(Math.max(editor.size + 1, editor.size * 1.2)),
      Enter: () => editor.finish(),
    });
    for (const [key, tool] of Object.entries(TOOL_KEYS)) plain[key] = () => { if (editor.enabled) editor.setTool(tool); };
  }

  function key(event) {
    if (event.key === ' ' && stage.element.matches(':hover')) {
      stage.panning = true;
      element.classList.add('panning');
    } else if (plain[event.key]) plain[event.key]();
    else return;
    event.preventDefault();
  }

  function control(event) {
    const letter = event.key.toLowerCase();
    if (!run.editable || !['s', 'z', 'y'].includes(letter)) return;
    event.preventDefault();
    if (letter === 's') on.save();
    else if (!editor.enabled) say('Strokes are undone on the mask (m).');
    else if (letter === 'z' && !event.shiftKey) editor.undo();
    else editor.redo();
  }

  function release() {
    stage.panning = false;
    element.classList.remove('panning');
  }

  return { key, control, release };
}
