// The reference: one recording, or its vocal and instrumental apart; heard, seen and cut before it is sent.

import { byId, h, say } from './dom.js';
import { drop, keep, kept } from './files.js';
import { clock, size } from './words.js';
import { draw, onStale } from './waveform.js';

const PER_SECOND = 20;
const LONGEST_SECONDS = 30;
const SLOTS = { audio: 'Recording', vocal: 'Vocal', instrumental: 'Instrumental' };

export class Reference {
  constructor(onChange) {
    this.onChange = onChange;
    this.files = {}; // slot → {file, peaks, seconds}
    this.apart = false;
    this.start = h('input', { type: 'number', id: 'start_seconds', min: 0, step: 0.1, value: 0, oninput: () => this.changed() });
    this.end = h('input', { type: 'number', id: 'end_seconds', min: 0, step: 0.1, value: LONGEST_SECONDS, oninput: () => this.changed() });
    this.slots = h('div', { class: 'slots' });
    const kinds = [['one', 'One recording', false], ['two', 'Vocal and instrumental', true]].map(([id, label, apart]) => h('label', {},
      h('input', { type: 'radio', name: 'reference-kind', id: `reference-${id}`, checked: apart === this.apart, onchange: () => this.split(apart) }),
      h('span', {}, label)));
    this.cut = h('div', { class: 'options inner', hidden: true },
      h('div', { class: 'field' }, h('label', { for: 'start_seconds' }, 'From second'), this.start),
      h('div', { class: 'field' }, h('label', { for: 'end_seconds' }, 'To second'), this.end));
    byId('reference-body').append(
      h('p', { class: 'soft small', id: 'reference-hint' }, 'The song goes on in the manner of up to 30 seconds of a recording.'),
      h('div', { class: 'segmented', role: 'radiogroup', 'aria-label': 'Kind of reference' }, kinds), this.slots, this.cut);
    this.drawSlots();
    this.restore();
  }

  get wanted() {
    return this.apart ? ['vocal', 'instrumental'] : ['audio'];
  }

  /** The field of the request, or nothing. */
  async field() {
    const held = this.wanted.filter((slot) => this.files[slot]);
    if (!held.length) return undefined;
    const entries = await Promise.all(held.map(async (slot) => [slot, await base64(this.files[slot].file)]));
    return { ...Object.fromEntries(entries), ...this.range() };
  }

  range() {
    return { start_seconds: Number(this.start.value) || 0, end_seconds: Number(this.end.value) || LONGEST_SECONDS };
  }

  /** What the draft keeps; the files themselves are in IndexedDB. */
  get draft() {
    return { apart: this.apart, ...this.range() };
  }

  set draft({ apart = false, start_seconds: start = 0, end_seconds: end = LONGEST_SECONDS } = {}) {
    this.start.value = start;
    this.end.value = end;
    this.apart = apart;
    byId(apart ? 'reference-two' : 'reference-one').checked = true;
    this.drawSlots();
  }

  split(apart) {
    this.apart = apart;
    this.drawSlots();
    this.onChange();
  }

  changed() {
    this.paint();
    this.onChange();
  }

  async restore() {
    for (const slot of Object.keys(SLOTS)) {
      const found = await kept(slot);
      if (found) await this.take(slot, new File([found.blob], found.name, { type: found.blob.type }), false);
    }
  }

  async take(slot, file, isNew = true) {
    const held = { file, peaks: [], seconds: null };
    this.files[slot] = held;
    try {
      Object.assign(held, await peaksOf(file));
    } catch { /* the server may read what this browser does not */ }
    if (this.files[slot] !== held) return;
    if (isNew) {
      keep(slot, file);
      this.start.value = 0;
      this.end.value = Math.min(LONGEST_SECONDS, held.seconds ? Math.floor(held.seconds * 10) / 10 : LONGEST_SECONDS);
    }
    byId('reference').open = true;
    say(byId('error-reference'), '');
    this.drawSlots();
    this.onChange();
  }

  remove(slot) {
    delete this.files[slot];
    drop(slot);
    say(byId('error-reference'), '');
    this.drawSlots();
    this.onChange();
  }

  clear() {
    this.put({});
    this.draft = {};
  }

  /** Replace the files by those of another page. */
  put(files) {
    Object.keys(SLOTS).forEach((slot) => (files[slot] ? keep(slot, files[slot].file) : drop(slot)));
    this.files = files;
    say(byId('error-reference'), '');
    this.drawSlots();
  }

  drawSlots() {
    this.released?.forEach((release) => release());
    this.canvases = {};
    this.slots.replaceChildren(...this.wanted.map((slot) => (this.files[slot] ? this.held(slot) : this.open(slot))));
    this.released = Object.values(this.canvases).map((canvas) => onStale(canvas, () => this.paint()));
    this.cut.hidden = !this.wanted.some((slot) => this.files[slot]);
    this.paint();
  }

  open(slot) {
    const input = h('input', { type: 'file', accept: 'audio/*,.wav,.flac,.mp3,.ogg', class: 'sr', onchange: () => input.files[0] && this.take(slot, input.files[0]) });
    const zone = h('label', { class: 'drop' }, input, h('strong', {}, SLOTS[slot]), ' Drop a file here, or choose one');
    zone.addEventListener('dragover', (event) => { event.preventDefault(); zone.classList.add('over'); });
    zone.addEventListener('dragleave', () => zone.classList.remove('over'));
    zone.addEventListener('drop', (event) => {
      event.preventDefault();
      zone.classList.remove('over');
      if (event.dataTransfer.files[0]) this.take(slot, event.dataTransfer.files[0]);
    });
    return zone;
  }

  held(slot) {
    const { file, seconds } = this.files[slot];
    const length = seconds == null ? 'this browser cannot show it' : clock(seconds);
    const canvas = h('canvas', { class: 'small-wave', role: 'img', 'aria-label': `Waveform of ${file.name}` });
    if (seconds != null) this.canvases[slot] = canvas;
    return h('div', { class: 'held' },
      h('div', { class: 'held-head' }, h('strong', {}, file.name), h('span', { class: 'soft small' }, `${length} · ${size(file.size)}`),
        h('button', { type: 'button', class: 'quiet small', 'aria-label': `Remove ${file.name}`, onclick: () => this.remove(slot) }, 'Remove')),
      seconds == null ? null : canvas);
  }

  paint() {
    const { start_seconds: start, end_seconds: end } = this.range();
    for (const [slot, canvas] of Object.entries(this.canvases ?? {})) {
      const { peaks, seconds } = this.files[slot] ?? {};
      if (seconds) draw(canvas, peaks, { from: start / seconds, to: end / seconds, played: end / seconds });
    }
  }
}

async function peaksOf(file) {
  const context = new AudioContext();
  try {
    const audio = await context.decodeAudioData(await file.arrayBuffer());
    const step = Math.max(1, Math.floor(audio.sampleRate / PER_SECOND));
    const samples = audio.getChannelData(0);
    const peaks = [];
    for (let at = 0; at < samples.length; at += step) {
      let most = 0;
      for (let each = at; each < Math.min(at + step, samples.length); each += 1) most = Math.max(most, Math.abs(samples[each]));
      peaks.push(most);
    }
    return { peaks, seconds: audio.duration };
  } finally {
    context.close();
  }
}

function base64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(',') + 1));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}
