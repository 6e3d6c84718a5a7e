// The view where a song is written: its words, its sound and how it is taken. What is typed is kept as a draft.

import { Problem } from './api.js';
import { byId, say } from './dom.js';
import { submit } from './jobs.js';
import { LyricsEditor } from './lyrics.js';
import { models } from './model_state.js';
import { TagPicker } from './picker.js';
import { inWords, missing, outside } from './plain_errors.js';
import { Reference } from './reference.js';
import { draft } from './store.js';
import { split } from './tags.js';
import { Undo } from './undo.js';
import { span } from './words.js';

const NUMBERS = ['segments', 'seed', 'temperature', 'top_p', 'top_k', 'repetition_penalty'];
const KEPT = [...NUMBERS, 'max_new_tokens', 'takes', 'guidance_first', 'guidance_later'];
const DEFAULTS = { max_new_tokens: 3000, takes: 1 };
const PLACES = { lyrics: 'lyrics', genres: 'genres', reference: 'reference' }; // field → where its error is shown
const TOKENS_A_SECOND = 100;
const EXAMPLE = {
  genres: 'folk, acoustic guitar, uplifting, female, warm vocal',
  lyrics: '[verse]\nThe kettle hums, the window glows\nA paper boat where the gutter flows\nI fold my map, I leave it there\n'
    + "There's morning in the salted air\n\n[chorus]\nOh, carry me over, carry me on\nThe night was long but the night is gone\n"
    + 'Every lantern along the bay\nIs winking out to greet the day\n',
};

export class WriteView {
  constructor(open) {
    this.open = open;
    const changed = () => this.changed();
    this.picker = new TagPicker(() => { changed(); this.editor.readSoon(); });
    this.reference = new Reference(changed);
    this.editor = new LyricsEditor({ fields: () => this.fields(), onChange: changed, onReading: (reading) => this.showReading(reading) });
    this.undo = new Undo((page) => this.restore(page));
    byId('lyrics').addEventListener('input', () => this.undo.forget());
    byId('write').addEventListener('submit', (event) => { event.preventDefault(); this.generate(); });
    byId('write').addEventListener('keydown', (event) => {
      if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) byId('write').requestSubmit();
      else if (event.key === 'Enter' && event.target.tagName === 'INPUT') event.preventDefault();
    });
    byId('write').addEventListener('input', (event) => {
      if (!KEPT.includes(event.target.id) && event.target.name !== 'format') return;
      changed();
      this.editor.readSoon();
    });
    byId('example').addEventListener('click', () => this.fill(EXAMPLE));
    byId('clear').addEventListener('click', () => this.fill({}, true));
    models.addEventListener('change', () => this.drawNotice());
    this.load(draft.read());
  }

  show() {
    this.editor.placeNotes();
    this.drawNotice();
  }

  /** The fields of the request, without the reference. Empty ones are left to the server. */
  fields() {
    const numbers = NUMBERS.map((name) => [name, byId(name).value]).filter(([, value]) => value !== '');
    const guidance = [byId('guidance_first').value || 1.5, byId('guidance_later').value || 1.2].map(Number);
    const guided = byId('guidance_first').value || byId('guidance_later').value;
    return {
      genres: this.picker.tags.join(' '),
      lyrics: this.editor.text,
      format: byId('write').elements.format.value,
      max_new_tokens: Number(byId('max_new_tokens').value),
      ...Object.fromEntries(numbers.map(([name, value]) => [name, Number(value)])),
      ...(guided ? { guidance_scale: guidance } : {}),
      tracks: ['mix', 'vocal', 'instrumental'],
    };
  }

  changed() {
    this.clearErrors();
    draft.write(this.page);
    this.drawButton();
  }

  /** Everything that is on the page but the reference's files. */
  get page() {
    const fields = Object.fromEntries(KEPT.map((name) => [name, byId(name).value]));
    return {
      ...fields, tags: this.picker.tags, lyrics: this.editor.text, format: byId('write').elements.format.value,
      reference: this.reference.draft,
    };
  }

  load(kept) {
    this.picker.set(kept.tags ?? []);
    KEPT.forEach((name) => { byId(name).value = kept[name] ?? DEFAULTS[name] ?? ''; });
    byId('write').elements.format.value = kept.format ?? 'mp3';
    if (kept.reference) this.reference.draft = kept.reference;
    this.editor.text = kept.lyrics ?? '';
    this.drawButton();
  }

  /** Replace the page by a request as the server echoes it. The reference stays as it is: the server keeps no audio. */
  fill({ genres = '', lyrics = '', guidance_scale: guidance, reference, ...request }, clears = false) {
    const files = { ...this.reference.files };
    if (this.editor.text.trim() || this.picker.tags.length || Object.keys(files).length) this.undo.keep({ page: this.page, files });
    if (clears) this.reference.clear();
    const [first, later] = guidance ?? [];
    const standard = first === 1.5 && later === 1.2;
    this.load({
      ...request, lyrics, tags: split(genres), takes: 1,
      guidance_first: standard ? '' : first, guidance_later: standard ? '' : later,
    });
    this.changed();
    byId('lyrics').focus();
  }

  restore({ page, files }) {
    this.reference.put(files);
    this.load(page);
    this.changed();
    byId('lyrics').focus();
  }

  async generate() {
    const button = byId('generate');
    if (button.disabled) return;
    this.clearErrors();
    const errors = [...missing(this.fields()), ...outside(KEPT)];
    if (errors.length) {
      this.showProblem({ errors });
      return;
    }
    button.disabled = true;
    button.textContent = 'Sending…';
    try {
      const fields = { ...this.fields(), reference: await this.reference.field() };
      const predictions = await submit(fields, Number(byId('takes').value) || 1);
      const begun = predictions.find((each) => each.job_id);
      const wrong = predictions.find((each) => !each.job_id)?.error;
      if (wrong) this.showProblem(new Problem(wrong.status, wrong));
      if (begun) this.open(begun.job_id);
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      this.showProblem(error);
    } finally {
      button.disabled = false;
      this.drawButton();
    }
  }

  /** Each error beside its field; those of no shown field beside the button. */
  showProblem(problem) {
    let first = null;
    for (const error of problem.errors) {
      const { field } = error;
      const name = String(field ?? '').replace(/^(instances\.\d+|parameters)\./, '').split(/[.[]/)[0];
      const place = PLACES[name] ?? (byId(name) || name === 'guidance_scale' ? 'options' : 'general');
      if (place === 'reference') byId('reference').open = true;
      say(byId(`error-${place}`), [byId(`error-${place}`).textContent, inWords(error)].filter(Boolean).join('\n'));
      const input = byId({ genres: 'tag-input', guidance_scale: 'guidance_first' }[name] ?? name);
      input?.setAttribute('aria-invalid', 'true');
      if (input?.matches('input, textarea')) first ??= input;
      first?.closest('details')?.setAttribute('open', '');
    }
    first?.focus();
  }

  /** Say at once what is wrong with the fields below; the editor shows what is wrong with the words. */
  showReading(reading) {
    const wrong = (reading?.errors ?? []).filter(({ field }) => byId(String(field)) && field !== 'lyrics');
    say(byId('error-options'), wrong.map(inWords).join('\n'));
    wrong.forEach(({ field }) => byId(field).setAttribute('aria-invalid', 'true'));
  }

  clearErrors() {
    ['lyrics', 'genres', 'reference', 'options', 'general'].forEach((place) => say(byId(`error-${place}`), ''));
    byId('write').querySelectorAll('[aria-invalid]').forEach((input) => input.removeAttribute('aria-invalid'));
  }

  drawButton() {
    const takes = Number(byId('takes').value) || 1;
    byId('length-out').textContent = span(Number(byId('max_new_tokens').value) / TOKENS_A_SECOND);
    byId('max_new_tokens').setAttribute('aria-valuetext', `up to ${byId('length-out').textContent}`);
    if (!byId('generate').disabled) byId('generate').textContent = takes > 1 ? `Generate ${takes} takes` : 'Generate the song';
  }

  drawNotice() {
    say(byId('write-notice'), models.notice);
    byId('write-notice').classList.toggle('calm', models.isTiny);
    if (this.tiny !== models.isTiny) this.editor.readSoon(); // the sections of tiny are shorter
    this.tiny = models.isTiny;
    const hint = models.takesReference
      ? 'The song goes on in the manner of up to 30 seconds of a recording.'
      : `The model ${models.name} takes no recording; those whose name ends in -icl do. See Models.`;
    say(byId('reference-hint'), hint);
  }
}
