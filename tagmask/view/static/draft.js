// Unsaved strokes of one photo, kept over a reload of the page.
import { decodeUrl, encode } from './raster.js';

const KEY = 'tagmask-draft';

export async function readDraft(title, n) {
  try {
    const draft = JSON.parse(sessionStorage.getItem(KEY) ?? 'null');
    return draft?.title === title && draft.n === n ? await decodeUrl(draft.png) : null;
  } catch {
    return null;
  }
}

export function writeDraft(title, n, map) {
  try {
    sessionStorage.setItem(KEY, JSON.stringify({ title, n, png: encode(map).toDataURL('image/png') }));
  } catch {
    // No room: an older state of the strokes would be worse than none.
    dropDraft();
  }
}

export function dropDraft() {
  sessionStorage.removeItem(KEY);
}
