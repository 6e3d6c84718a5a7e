// The tags of a song: picked from groups or typed, and removed again.

import { byId, h, say } from './dom.js';
import { GROUPS, kindOf, split } from './tags.js';

const PLENTY = 8; // more tags than this are followed less well

export class TagPicker {
  constructor(onChange) {
    this.tags = [];
    this.onChange = onChange;
    this.group = GROUPS[0];
    this.at = 0; // the chip that the Tab key goes to
    this.input = byId('tag-input');
    byId('tag-list').append(...GROUPS.flatMap((group) => group.tags.map((tag) => h('option', { value: tag }))));
    this.tabs = GROUPS.map((group, index) => this.tab(group, index));
    byId('tag-groups').append(...this.tabs);
    this.input.addEventListener('keydown', (event) => this.onKey(event));
    this.input.addEventListener('change', () => this.takeInput());
    byId('tokens').addEventListener('click', (event) => { if (event.target === event.currentTarget) this.input.focus(); });
    byId('tag-chips').addEventListener('keydown', (event) => this.onChipKey(event));
    this.draw();
  }

  /** Replace the tags, without telling anybody. */
  set(tags) {
    this.tags = tags;
    this.draw();
  }

  tab(group, index) {
    const tab = h('button', {
      type: 'button', role: 'tab', id: `tag-tab-${index}`, 'aria-controls': 'tag-chips', onclick: () => this.show(group),
    }, group.name);
    tab.addEventListener('keydown', (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const next = (index + step + GROUPS.length) % GROUPS.length;
      this.show(GROUPS[next]);
      this.tabs[next].focus();
    });
    return tab;
  }

  show(group) {
    this.group = group;
    this.at = 0;
    this.draw();
  }

  /** The chips are one stop of the Tab key; the arrow keys go from one to the next. */
  onChipKey(event) {
    const chips = [...byId('tag-chips').children];
    const last = chips.length - 1;
    const at = chips.indexOf(document.activeElement);
    const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    chips[this.at].tabIndex = -1;
    this.at = (to + chips.length) % chips.length;
    chips[this.at].tabIndex = 0;
    chips[this.at].focus();
  }

  onKey(event) {
    if (event.key === 'Enter' || event.key === ',') {
      event.preventDefault();
      this.takeInput();
    } else if (event.key === 'Backspace' && !this.input.value && this.tags.length) {
      this.change(this.tags.slice(0, -1));
    }
  }

  takeInput() {
    const typed = split(this.input.value);
    this.input.value = '';
    if (typed.length) this.change([...this.tags, ...typed.filter((tag) => !this.tags.includes(tag))]);
  }

  toggle(tag) {
    this.change(this.tags.includes(tag) ? this.tags.filter((each) => each !== tag) : [...this.tags, tag]);
  }

  change(tags) {
    const chip = document.activeElement?.dataset?.chip;
    this.set(tags);
    if (chip) byId('tag-chips').querySelector(`[data-chip="${CSS.escape(chip)}"]`)?.focus();
    this.onChange();
  }

  draw() {
    const covered = new Set(this.tags.map(kindOf));
    byId('tokens').querySelectorAll('.token').forEach((token) => token.remove());
    this.input.before(...this.tags.map((tag) => this.token(tag)));
    this.input.placeholder = this.tags.length ? 'Add another' : 'Type or pick tags';
    this.tabs.forEach((tab, index) => {
      const shown = GROUPS[index] === this.group;
      tab.setAttribute('aria-selected', shown);
      tab.tabIndex = shown ? 0 : -1;
      tab.classList.toggle('covered', covered.has(GROUPS[index].name));
    });
    const panel = byId('tag-chips');
    panel.setAttribute('aria-labelledby', `tag-tab-${GROUPS.indexOf(this.group)}`);
    panel.replaceChildren(...this.group.tags.map((tag, index) => h('button', {
      type: 'button', class: 'chip', 'data-chip': tag, 'aria-pressed': String(this.tags.includes(tag)), tabindex: index === this.at ? 0 : -1,
      onclick: () => { this.at = index; this.toggle(tag); },
    }, tag)));
    say(byId('tag-hint'), this.hint(covered));
  }

  token(tag) {
    const remove = h('button', { type: 'button', 'aria-label': `Remove ${tag}` }, '×');
    remove.addEventListener('click', () => { this.toggle(tag); this.input.focus(); });
    return h('span', { class: 'token' }, tag, remove);
  }

  hint(covered) {
    if (!this.tags.length) return 'About five work best: one of each kind.';
    if (this.tags.length > PLENTY) return 'So many tags blur each other: about five work best.';
    const missing = GROUPS.map((group) => group.name).filter((name) => !covered.has(name));
    if (!missing.length) return 'One of each kind: that is what works best.';
    return missing.length === GROUPS.length ? '' : `Still open: ${missing.join(', ').toLowerCase()}.`;
  }
}
