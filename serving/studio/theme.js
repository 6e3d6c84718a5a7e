// Light, dark, or as the system: a button that goes round.

import { byId, icon } from './dom.js';
import { theme } from './store.js';

const ROUND = { auto: ['light', 'half', 'as the system'], light: ['dark', 'sun', 'light'], dark: ['auto', 'moon', 'dark'] };

export function beginTheme() {
  const button = byId('theme');
  const apply = (name) => {
    const [, shape, words] = ROUND[name] ?? ROUND.auto;
    if (name === 'light' || name === 'dark') document.documentElement.dataset.theme = name;
    else delete document.documentElement.dataset.theme;
    button.replaceChildren(icon(shape));
    button.setAttribute('aria-label', `Theme: ${words}`);
    button.title = `Theme: ${words}`;
  };
  button.addEventListener('click', () => {
    const [next] = ROUND[theme.read()] ?? ROUND.auto;
    theme.write(next);
    apply(next);
  });
  apply(theme.read());
}
