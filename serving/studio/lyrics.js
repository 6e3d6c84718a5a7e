// The lyrics' editor: shows how the server reads the words, its notes beside their lines, and the expected length.

import { call, Problem } from './api.js';
import { byId, debounce, h, say } from './dom.js';
import { models } from './model_state.js';
import { inPageWords } from './plain_errors.js';
import { clock, count, span } from './words.js';

const PAUSE_MS = 350; // without typing, before the server reads the words
const SECTIONS = ['verse', 'chorus', 'bridge', 'intro', 'outro'];
const GAP_PX = 6; // between two notes

/** How the server reads a tag, where that is not plain to see, and how long its section will be. */
function reading({ tag, generated, expected_seconds: seconds }, text) {
  const plain = text.toLowerCase().includes(`[${tag.toLowerCase()}]`);
  return [plain ? '' : `read as ${tag}`, generated ? `about ${span(seconds)}` : 'not generated'].filter(Boolean).join(' · ');
}

export class LyricsEditor {
  /** `fields` returns the fields of the request; `onReading` gets what the server read. */
  constructor({ fields, onChange, onReading }) {
    this.area = byId('lyrics');
    this.fields = fields;
    this.onReading = onReading;
    this.reading = null;
    this.readSoon = debounce(PAUSE_MS, () => this.read());
    this.area.addEventListener('input', () => { this.draw(); onChange(); this.readSoon(); });
    new ResizeObserver(() => this.placeNotes()).observe(this.area);
    byId('insert').append(...SECTIONS.map((tag) => h('button', {
      type: 'button', class: 'quiet small', onclick: () => this.insert(tag),
    }, `[${tag}]`)));
  }

  get text() {
    return this.area.value;
  }

  set text(text) {
    this.area.value = text;
    this.draw();
    this.readSoon();
  }

  /** Put a section's tag where the caret is, on a line of its own. */
  insert(tag) {
    const { value, selectionStart: at } = this.area;
    const before = value.slice(0, at).replace(/\n*$/, '');
    const lead = before ? '\n\n' : '';
    const text = `${lead}[${tag}]\n`;
    this.area.setRangeText(text, before.length, at, 'end');
    this.area.focus();
    this.area.dispatchEvent(new Event('input'));
  }

  /** Have the server read the words; an answer that words overtake is dropped. */
  async read() {
    this.control?.abort();
    this.control = new AbortController();
    const { signal } = this.control;
    if (!this.text.trim()) {
      this.show(null);
      return;
    }
    try {
      this.show(await call('check', { method: 'POST', json: this.fields(), signal }));
    } catch (error) {
      if (signal.aborted) return;
      if (!(error instanceof Problem)) throw error;
      this.show({ sections: [], warnings: [], errors: error.errors, expected_seconds: 0, ok: false });
    }
  }

  show(reading) {
    this.reading = models.fitted(reading);
    this.draw();
    this.drawPlan();
    this.drawNotes();
    this.onReading(reading);
  }

  /** Mark the lines behind the words: same text, same font, so each mark lies under its line. */
  draw() {
    const tags = new Map((this.reading?.sections ?? []).map((section) => [section.line, section]));
    const noted = new Set(this.remarks().flatMap((remark) => remark.lines ?? [remark.line]));
    const lines = this.text.split('\n').map((text, index) => {
      const section = tags.get(index + 1);
      const kinds = ['line', section && /[[【［〔「]/.test(text) && 'tag', section && !section.generated && 'left', noted.has(index + 1) && 'noted'];
      const length = section && h('span', {}, reading(section, text));
      return h('div', { class: kinds.filter(Boolean).join(' ') }, h('b', {}, text || '\u200b'), length);
    });
    byId('marks').replaceChildren(...lines);
  }

  remarks() {
    const { errors = [], warnings = [] } = this.reading ?? {};
    const wrong = errors.filter((error) => error.field === 'lyrics').map((error) => ({ ...error, wrong: true }));
    return [...wrong, ...warnings].sort((one, other) => (one.line ?? 1e9) - (other.line ?? 1e9));
  }

  drawPlan() {
    const plan = byId('plan');
    const sections = this.reading?.sections ?? [];
    plan.hidden = !sections.length;
    plan.replaceChildren(...sections.map((section) => {
      const block = h('span', { class: section.generated ? '' : 'left', title: `${section.tag}, about ${span(section.expected_seconds)}` }, section.tag);
      block.style.flexGrow = Math.max(2, section.expected_seconds);
      return block;
    }));
    const names = sections.map((section) => `${section.tag} about ${span(section.expected_seconds)}${section.generated ? '' : ', not generated'}`);
    plan.setAttribute('aria-label', `Sections: ${names.join('; ')}`);
    const made = sections.filter((section) => section.generated).length;
    const all = made === sections.length ? count(made, 'section') : `${made} of ${count(sections.length, 'section')}`;
    say(byId('lyrics-sum'), sections.length ? `${all} · about ${clock(this.reading.expected_seconds)}` : '');
  }

  drawNotes() {
    const notes = this.remarks().map((remark) => h('li', { class: remark.wrong ? 'wrong' : '' },
      remark.line && h('button', {
        type: 'button', class: 'to-line', onclick: () => this.goTo(remark.line),
      }, `Line ${remark.line}`), ' ', inPageWords(remark.detail.replace(/^lyrics( \(lines? [\d, ]+\))?: /, ''))));
    byId('notes').replaceChildren(...notes);
    this.placeNotes();
  }

  /** Put each note beside its line, and below the note before it. Narrow pages show them as a list. */
  placeNotes() {
    const list = byId('notes');
    const beside = getComputedStyle(list).position === 'relative';
    let free = 0;
    const remarks = this.remarks();
    [...list.children].forEach((note, index) => {
      if (!beside) {
        note.style.removeProperty('top');
        return;
      }
      const line = byId('marks').children[(remarks[index]?.line ?? 0) - 1];
      const top = Math.max(free, line ? line.offsetTop : free);
      note.style.top = `${top}px`;
      free = top + note.offsetHeight + GAP_PX;
    });
    if (beside) list.style.minHeight = `${free}px`;
    else list.style.removeProperty('min-height');
  }

  goTo(line) {
    const lines = this.text.split('\n');
    const start = lines.slice(0, line - 1).reduce((sum, each) => sum + each.length + 1, 0);
    this.area.focus();
    this.area.setSelectionRange(start, start + (lines[line - 1] ?? '').length);
  }
}
