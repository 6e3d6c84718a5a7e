// Builds and finds elements. Independent of what the page is about.

/** The element with that id. */
export const byId = (id) => document.getElementById(id);

/** A new element. Properties that begin with `on` are listeners; false, null and undefined leave an attribute out. */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, '');
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child != null && child !== false));
  return element;
}

const SHAPES = {
  play: 'M7 4.5v15l12-7.5z',
  pause: 'M7 5h3.6v14H7zM13.4 5H17v14h-3.6z',
  download: 'M11 4h2v8l3-3 1.4 1.4L12 15.8l-5.4-5.4L8 9l3 3zM5 18h14v2H5z',
  sun: 'M12 8a4 4 0 1 1 0 8 4 4 0 0 1 0-8zM11 2h2v3h-2zM11 19h2v3h-2zM2 11h3v2H2zM19 11h3v2h-3zM4.2 5.6l1.4-1.4 2.1 2.1-1.4 1.4zM16.3 17.7l1.4-1.4 2.1 2.1-1.4 1.4zM4.2 18.4l2.1-2.1 1.4 1.4-2.1 2.1zM16.3 6.3l2.1-2.1 1.4 1.4-2.1 2.1z',
  moon: 'M20 14.5A8.5 8.5 0 0 1 9.5 4a8.5 8.5 0 1 0 10.5 10.5z',
  half: 'M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18zm0 2v14a7 7 0 0 1 0-14z',
};

/** A small drawing beside words that say the same. */
export function icon(name) {
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  const path = document.createElementNS('http://www.w3.org/2000/svg', 'path');
  svg.setAttribute('viewBox', '0 0 24 24');
  svg.setAttribute('aria-hidden', 'true');
  svg.setAttribute('class', 'icon');
  path.setAttribute('d', SHAPES[name]);
  svg.append(path);
  return svg;
}

/** Show a message in an element, or hide the element where there is none. */
export function say(element, message) {
  if (element.textContent !== (message ?? '')) element.textContent = message ?? '';
  element.hidden = !message;
}

/** Tell people who listen to the page. */
export function announce(message) {
  const place = byId('announce');
  if (place.textContent !== message) place.textContent = message;
}

/** A button that asks once more before it does something. */
export function confirmButton(label, question, act) {
  let timer = 0;
  const button = h('button', { type: 'button', class: 'quiet danger' }, label);
  const calm = () => {
    clearTimeout(timer);
    button.textContent = label;
    button.classList.remove('asking');
  };
  button.addEventListener('click', () => {
    if (button.classList.contains('asking')) {
      calm();
      act(button);
      return;
    }
    button.classList.add('asking');
    button.textContent = question;
    timer = setTimeout(calm, 5000);
  });
  button.addEventListener('blur', calm);
  return button;
}

/** Calls `act` once the calls have stopped for so long. */
export function debounce(milliseconds, act) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => act(...values), milliseconds);
  };
}
