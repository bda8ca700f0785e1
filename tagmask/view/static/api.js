// All requests. With <html data-static> there is no server: everything is a file under data/.
import { encode, decode } from './raster.js';

export const isStatic = document.documentElement.dataset.static !== undefined;

async function sentence(response) {
  try {
    const { detail } = await response.json();
    if (typeof detail === 'string') return detail;
    return detail[0].msg;
  } catch {
    return `The server answered with ${response.status}.`;
  }
}

async function request(url, options = {}) {
  let response;
  try {
    response = await fetch(url, { credentials: 'same-origin', ...options });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Error(isStatic ? 'Serve this folder, for example with python -m http.server.' : 'The server does not answer.');
  }
  if (!response.ok) {
    const error = new Error(await sentence(response));
    error.status = response.status;
    throw error;
  }
  return response;
}

const json = async (url, options) => (await request(url, options)).json();
const post = (url, body) => request(url, {
  method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body),
});


// A label is the place in both classes and colours, the background's first.
export const getRun = () => json(isStatic ? 'data/run.json' : 'api/run');

export const getPhoto = (n, run) => json(isStatic ? `data/photo/${n}.json` : `api/photo/${n}?run=${run}`, { cache: 'no-store' });
export const photoUrl = (n) => (isStatic ? `data/photo/${n}.jpg` : `photo/${n}`);
export const thumbUrl = (row) => (isStatic ? `data/thumb/${row.n}.jpg` : `thumb/${row.n}?run=0&v=${row.version}`);

const layerUrl = (n, kind, run, version) => (
  isStatic ? `data/layer/${n}_${kind}.png` : `layer/${n}/${kind}?run=${run}&v=${version}`);

export async function getPicture(n) {
  return createImageBitmap(await (await request(photoUrl(n))).blob());
}

export async function getLayer(n, kind, run, version) {
  return decode(await (await request(layerUrl(n, kind, run, version))).blob());
}

export async function getCam(n, label, run) {
  const url = isStatic ? `data/cam/${n}_${label}.png` : `cam/${n}/${label}?run=${run}`;
  return decode(await (await request(url)).blob());
}

// Null where there is no segmenter.
export async function getSure(n, run) {
  if (isStatic) return null;
  return request(`sure/${n}?run=${run}`).then(async (answer) => decode(await answer.blob()), () => null);
}

const getState = async () => (await json('api/state', { cache: 'no-store' })).version;

let known = null;
let writing = Promise.resolve();

// Whether somebody else has decided something since this page last looked.
export async function news() {
  await writing;
  const version = await getState();
  const grown = known !== null && version > known;
  known = version;
  return grown;
}

// The page's own decisions, one after the other, are no news to it: rows must not move under the user's hands.
async function own(write) {
  const done = writing.then(async () => ({ before: await getState(), answer: await write() }));
  writing = done.then(async ({ before }) => { if (before === known) known = await getState(); }).catch(() => {});
  return (await done).answer;
}

export const review = (n, body) => own(async () => (await post(`api/review/${n}`, body)).json());

export async function saveMask(n, map) {
  const blob = await new Promise((resolve) => { encode(map).toBlob(resolve, 'image/png'); });
  return own(() => json(`api/mask/${n}`, { method: 'POST', headers: { 'Content-Type': 'image/png' }, body: blob }));
}

export async function click(n, seeds, map) {
  const response = await post(`api/click/${n}`, { seeds, mask: encode(map).toDataURL('image/png') });
  return decode(await response.blob());
}

export function matches(row, query) {
  const has = (labels, label) => labels !== null && labels.includes(Number(label));
  if (query.class && !has(row.found, query.class)) return false;
  if (query.tag && !has(row.tags, query.tag)) return false;
  if (query.split && row.split !== query.split) return false;
  if (query.suspect && row.suspects.length === 0) return false;
  if (query.text && !row.id.toLowerCase().includes(query.text.toLowerCase())) return false;
  switch (query.decision) {
    case 'none': return row.decision === null && !row.edited;
    case 'accepted': return row.decision === 'accept';
    case 'rejected': return row.decision === 'reject';
    case 'edited': return row.edited;
    default: return true;
  }
}

function compare(sort) {
  const sign = sort === 'iou' ? 1 : -1;
  return (one, two) => {
    const [a, b] = [one[sort], two[sort]];
    if (a === null || b === null) return (a === null) - (b === null) || one.n - two.n;
    return sign * (a - b) || one.n - two.n;
  };
}

let everything = null;
let selected = { key: null, rows: [] };

async function staticPhotos(query, offset, limit) {
  everything ??= json('data/photos.json').catch((error) => { everything = null; throw error; });
  const { rows } = await everything;
  const key = JSON.stringify(query);
  if (selected.key !== key) {
    const found = rows.filter((row) => matches(row, query));
    if (query.sort && query.sort !== 'place') found.sort(compare(query.sort));
    selected = { key, rows: found };
  }
  return { total: selected.rows.length, rows: selected.rows.slice(offset, offset + limit) };
}

export function getPhotos(query, offset, limit, signal) {
  if (isStatic) return staticPhotos(query, offset, limit);
  return json(`api/photos?${new URLSearchParams({ offset, limit, ...query })}`, { signal, cache: 'no-store' });
}
