// Small helpers to build the page, to tell and to ask something.

const PROPERTIES = new Set(['value', 'checked', 'disabled', 'hidden', 'selected', 'indeterminate']);

export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (value === null || value === undefined) continue;
    if (key.startsWith('on')) element.addEventListener(key.slice(2), value);
    else if (key === 'test') element.dataset.testid = value;
    else if (PROPERTIES.has(key)) element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function button(label, test, onclick, props = {}) {
  return h('button', { type: 'button', test, onclick, ...props }, label);
}

export function press(element, on) {
  element.setAttribute('aria-pressed', String(on));
}

let clearing = 0;

export function say(text, bad = false) {
  const line = document.getElementById('status');
  line.textContent = text;
  line.classList.toggle('bad', bad);
  clearTimeout(clearing);
  clearing = setTimeout(() => { line.textContent = ''; }, bad ? 15000 : 5000);
}

export function sayError(error) {
  if (error.name !== 'AbortError') say(error.message, true);
}

let answer = null;

// A question in the page. A newer question answers the older one with its last choice.
export function ask(text, choices) {
  if (answer) answer();
  const box = document.getElementById('question');
  const before = document.activeElement;
  return new Promise((resolve) => {
    const close = (choice) => {
      answer = null;
      box.hidden = true;
      box.replaceChildren();
      if (before && before.isConnected) before.focus({ preventScroll: true });
      resolve(choice);
    };
    const last = choices[choices.length - 1];
    answer = () => close(last);
    box.replaceChildren(h('div', {
      role: 'alertdialog', 'aria-label': text,
      onkeydown: (event) => { event.stopPropagation(); if (event.key === 'Escape') close(last); },
    }, h('span', {}, text), choices.map((choice) => button(choice, `answer-${choice.toLowerCase()}`, () => close(choice)))));
    box.hidden = false;
    box.querySelector('button').focus();
  });
}
