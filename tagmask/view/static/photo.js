// One photo: which label maps are shown, its tags and figures, and the mask tools.
import { getLayer, getPhoto, getPicture, photoUrl } from './api.js';
import { h, ask, press, say, sayError } from './dom.js';
import { Editor } from './edit.js';
import { createFrame } from './frame.js';
import { badges, shortName } from './grid.js';
import { createKeys } from './keys.js';
import { Layers } from './layers.js';
import { className, createClasses, createTags, showFigures, showJournal } from './panel.js';
import { makeLook, Pane, Stage } from './stage.js';
import { createToolbar } from './toolbar.js';

const SIDE = ['refined', 'mask', 'prediction', 'truth'];

export function createPhoto({ run, list, back, go, decide, setTags, applied, help }) {
  let [n, index, meta, picture, layers] = [null, -1, null, null, null];
  let kind = run.kinds[0] ?? 'mask';
  let view = 'one';
  let camLabel = null;
  let showing = 0;
  let arranging = 0;

  const stage = new Stage(readout);
  const editor = new Editor(run.title, {
    painted(box) {
      for (const pane of stage.panes) if (pane.map === editor.map) pane.paint(stage.look, box);
      stage.draw();
    },
    changed() {
      if (run.editable) { toolbar.update(view === 'one' ? shownKind() : null); canvasCursor(); }
      stage.draw();
    },
  });
  const classes = createClasses(run, () => stage.setLook(makeLook(run.colours, classes.hidden)));
  const tags = createTags(run, (labels) => setTags(n, labels));
  const toolbar = createToolbar(run, editor, { save, takeOver });

  const on = { step, mark, save, setKind, setView, back, help, opacity(value) { stage.opacity = value; stage.draw(); } };
  const frame = createFrame(run, stage, [run.editable ? toolbar.element : [], classes.element, tags.element].flat(), on);
  const { element } = frame;

  // --- what is shown ---

  const available = () => run.kinds.filter((one) => meta?.kinds.includes(one) || (one === 'mask' && run.editable));
  function shownKind() {
    const kindsHere = available();
    return kindsHere.includes(kind) ? kind : kindsHere[0] ?? null;
  }

  // The mask of the first run is the one that is edited.
  function layer(wanted, which = 0) {
    return wanted === 'mask' && which === 0 && editor.map ? editor.map : layers.get(wanted, which);
  }

  async function pane(wanted, which, caption, first) {
    const spec = { caption, photo: picture, kind: wanted, which };
    try {
      if (wanted?.startsWith('cam')) spec.heat = await layer(wanted, which);
      else if (wanted) spec.map = await layer(wanted, which);
    } catch (error) {
      if (!caption) throw error;
      spec.caption = h('span', {}, caption, `: ${error.message}`);
    }
    if (spec.map && (spec.map.width !== picture.width || spec.map.height !== picture.height)) {
      spec.map = null;
      say('This map has another size than the photo.', true);
    }
    if (view === 'one' && run.editable) spec.tools = editor;
    return Object.assign(new Pane(spec, first ? 'canvas' : null), { kind: wanted, which });
  }

  function camChoice() {
    const labels = meta.tags?.length ? meta.tags : meta.found ?? [];
    if (!labels.includes(camLabel)) camLabel = labels[0] ?? null;
    if (camLabel === null) return null;
    const select = h('select', { 'aria-label': 'Class of the CAM', test: 'cam-class', onchange: () => { camLabel = Number(select.value); arrange(); } },
      labels.map((label) => h('option', { value: label, selected: label === camLabel }, className(run, label))));
    return h('span', {}, 'CAM of ', select);
  }

  function specs() {
    const now = shownKind();
    if (view === 'compare') return run.runs.slice(0, 2).map((title, which) => [now, which, `${title}: ${now}`]);
    if (view === 'one') return [[now, 0, null]];
    const caption = run.cams ? camChoice() : null;
    const here = available();
    return [...(caption ? [[`cam${camLabel}`, 0, caption]] : []), ...SIDE.filter((one) => here.includes(one)).map((one) => [one, 0, one])];
  }

  async function arrange() {
    if (!meta || !picture) return;
    const ticket = ++arranging;
    const now = shownKind();
    for (const [one, key] of Object.entries(frame.kinds)) { press(key, one === now && view !== 'side'); key.hidden = !available().includes(one); }
    press(frame.side, view === 'side');
    press(frame.compare, view === 'compare');
    editor.enabled = run.editable && view === 'one' && now === 'mask';
    try {
      const panes = await Promise.all(specs().map(([...spec], i) => pane(...spec, i === 0)));
      if (ticket !== arranging) return;
      readout(null);
      stage.setPanes(panes, makeLook(run.colours, classes.hidden));
      listClasses();
      editor.changed();
    } catch (error) { sayError(error); }
  }

  function listClasses() {
    const labels = new Set([...(meta.tags ?? []), ...(meta.found ?? [])]);
    for (const { map } of stage.panes) if (map) new Set(map.labels).forEach((label) => labels.add(label));
    classes.show(labels);
  }

  function setKind(wanted) {
    if (!available().includes(wanted)) { say(`There is no ${wanted} for this photo.`); return; }
    editor.drop();
    kind = wanted;
    if (view === 'side') view = 'one';
    arrange();
  }

  function setView(wanted) {
    if (wanted === 'compare' && run.runs.length < 2) return;
    editor.drop();
    view = view === wanted ? 'one' : wanted;
    arrange();
  }

  function canvasCursor() {
    element.classList.toggle('busy', Boolean(editor.pending));
    element.classList.toggle('drawing', editor.enabled);
  }

  let reading = 0;
  async function readout(pane, x, y) {
    const ticket = ++reading;
    // The name is there at once; how sure the segmenter is may take a moment.
    const tell = (text) => { if (ticket === reading) frame.readout.textContent = text ?? ''; };
    tell(await layers?.describe(run, pane, x, y, tell));
  }

  // --- opening and moving ---

  function showRow(row) {
    frame.name.textContent = shortName(row.id);
    frame.name.title = row.id;
    frame.marks.replaceChildren(...badges(row));
    tags.show(row);
    toolbar.setTags(row.tags ?? []);
    showFigures(frame.figures, row, run);
  }

  // Where nobody has made a mask yet, nothing is sure.
  async function getMask() {
    const { width, height } = picture;
    const empty = { labels: new Uint8Array(width * height).fill(255), width, height };
    if (!meta.kinds.includes('mask')) return empty;
    return getLayer(n, 'mask', 0, meta.version).catch((error) => {
      if (error.status === 404) return empty;
      throw error;
    });
  }

  async function show(number, hint) {
    if (element.hidden) {
      element.hidden = false;
      frame.name.focus();
    }
    if (number === n && meta) { stage.draw(); return; }
    const ticket = ++showing;
    arranging += 1;
    [n, index, meta] = [number, hint, null];
    layers = null;
    editor.close();
    stage.element.setAttribute('aria-busy', 'true');
    stage.reset();
    frame.place.textContent = '';
    readout(null);
    try {
      const [info, bitmap] = await Promise.all([getPhoto(n, 0), getPicture(n)]);
      if (ticket !== showing) return;
      [meta, picture] = [info, bitmap];
      layers = new Layers(n, meta.version, meta.kinds);
      showRow(meta);
      showJournal(frame.journal, meta.journal);
      const mask = run.editable ? await getMask() : null;
      if (ticket !== showing) return;
      if (mask) await editor.open(n, mask);
      if (ticket !== showing) return;
      await arrange();
    } catch (error) {
      if (ticket === showing) { stage.clear(); sayError(error); }
    } finally {
      if (ticket === showing) stage.element.removeAttribute('aria-busy');
    }
    await placeInList(ticket);
  }

  async function placeInList(ticket) {
    try {
      const found = await list.locate(n, index < 0 ? n : index);
      if (ticket !== showing) return;
      if (found >= 0) index = found;
      frame.place.textContent = found >= 0 ? `${found + 1} of ${list.total}` : 'not in this filter';
      frame.previous.disabled = index <= 0;
      frame.next.disabled = list.total !== null && found >= list.total - 1;
      // The next picture is asked for early, so that looking through photos is quick.
      const after = list.get(index + 1);
      if (after) new Image().src = photoUrl(after.n);
    } catch (error) { sayError(error); }
  }

  async function step(by) {
    const ticket = showing;
    try {
      if (index < 0) index = await list.locate(n, n);
      if (ticket !== showing) return;
      // A photo that has left the filter left its place to the one after it.
      const gone = list.get(index) && list.get(index).n !== n;
      const to = await list.step(gone && by > 0 ? index : index + by);
      if (ticket !== showing) return;
      if (to) go(to.row.n, to.index);
      else say(by > 0 ? 'This is the last photo.' : 'This is the first photo.');
    } catch (error) { sayError(error); }
  }

  function mark(word) {
    if (!meta) say('One moment: the photo is still on its way.');
    else decide(meta, word);
  }

  // What the server says about this photo now, after a decision of this page or of somebody else.
  async function update(row, entries) {
    if (!meta || row.n !== n) return;
    const older = meta.version !== row.version;
    meta = { ...meta, ...row };
    showRow(meta);
    if (entries) showJournal(frame.journal, entries);
    if (!older) return;
    const ticket = showing;
    const { kinds } = await getPhoto(n, 0);
    if (ticket !== showing) return;
    meta.kinds = kinds;
    layers.renew(meta.version, kinds);
    if (run.editable) {
      const map = await getMask();
      if (ticket !== showing || map.labels.every((label, i) => label === editor.saved?.[i])) { listClasses(); return; }
      if (editor.dirty || editor.stroke || editor.saving) { say('The saved mask has changed; your unsaved strokes are still here.', true); return; }
      await editor.open(n, map);
    }
    if (ticket === showing) await arrange();
  }

  async function poll() {
    if (element.hidden || !meta) return;
    const mine = n;
    const info = await getPhoto(mine, 0);
    if (mine === n && meta && info.version !== meta.version) await update(info, info.journal);
  }

  // --- saving ---

  async function save() {
    try {
      const answer = await editor.save();
      if (!answer) return true;
      applied(answer);
      say('Mask saved.');
      return true;
    } catch (error) {
      sayError(error);
      return false;
    }
  }

  async function takeOver() {
    if (shownKind() === null || !editor.map) return;
    const map = await layers.get(shownKind(), 0).catch(sayError);
    if (!map) return;
    editor.apply(map.labels);
    setKind('mask');
  }

  // Whether the page may go elsewhere.
  async function mayLeave() {
    if (element.hidden || !editor.dirty) return true;
    const choice = await ask('This mask has unsaved strokes.', ['Save', 'Discard', 'Stay']);
    if (choice === 'Save') return save();
    if (choice === 'Discard') editor.discard();
    return choice === 'Discard';
  }

  return {
    element,
    ...createKeys(run, { editor, stage, classes, tags, element, on }),
    show,
    update,
    poll,
    mayLeave,
    editor,
    get place() { return index; },
    // Nothing is kept: the next visit shows what the server has then.
    hide() {
      element.hidden = true;
      showing += 1;
      arranging += 1;
      [n, meta, layers] = [null, null, null];
      editor.close();
      stage.clear();
    },
    labelAt(x, y) {
      const map = stage.panes.find((one) => one.map)?.map;
      return meta && map ? map.labels[Math.floor(y) * map.width + Math.floor(x)] : null;
    },
  };
}
