// Vocal and instrumental apart: what is heard of each, and how loud.

import { call } from './api.js';
import { h } from './dom.js';
import { player } from './player.js';
import { draw, onStale } from './waveform.js';
import { title } from './words.js';

const TRACKS = { vocal: 'Vocal', instrumental: 'Instrumental' };

export class Mixer {
  constructor() {
    this.element = h('div', { class: 'mixer', role: 'group', 'aria-label': 'Tracks', hidden: true });
    this.ends = [];
  }

  /** Show the tracks of a finished song, where it has them apart. */
  show(job) {
    if (!job.tracks?.mix || !job.tracks.vocal || !job.tracks.instrumental) return;
    this.job = job;
    this.element.hidden = false;
    this.element.replaceChildren(...Object.keys(TRACKS).map((track) => this.row(track)));
    const change = () => this.rows().forEach((row) => this.draw(row));
    player.addEventListener('change', change);
    this.ends.push(() => player.removeEventListener('change', change));
    change();
  }

  rows() {
    return [...this.element.children];
  }

  row(track) {
    const name = TRACKS[track];
    const canvas = h('canvas', { class: 'small-wave', 'aria-hidden': 'true' });
    const toggle = (what, label) => h('button', {
      type: 'button', class: 'switch', 'data-what': what, 'aria-label': `${label} ${name.toLowerCase()}`, title: label,
      onclick: () => this.set(track, { [what]: !this.stem(track)[what] }),
    }, label);
    const volume = h('input', {
      type: 'range', min: 0, max: 1, step: 0.05, value: 1, 'aria-label': `Volume of the ${name.toLowerCase()}`,
      oninput: (event) => this.set(track, { volume: Number(event.target.value) }),
    });
    const row = h('div', { class: 'track', 'data-track': track }, h('span', { class: 'track-name' }, name),
      toggle('muted', 'Mute'), toggle('solo', 'Solo'), volume, canvas);
    this.showPeaks(track, canvas, row);
    return row;
  }

  async showPeaks(track, canvas, row) {
    const found = await call(`jobs/${this.job.job_id}/peaks/${track}.json`).catch(() => null);
    if (!found) return;
    row.paint = () => draw(canvas, found.peaks, { played: player.isAt(this.job.job_id) ? player.time / found.seconds : 0 });
    this.ends.push(onStale(canvas, row.paint));
    row.paint();
  }

  stem(track) {
    return player.isAt(this.job.job_id) ? player.stem(track) : { muted: false, solo: false, volume: 1 };
  }

  set(track, change) {
    const { job } = this;
    if (!player.isAt(job.job_id)) {
      const urls = Object.fromEntries(Object.entries(job.tracks).map(([name, { url }]) => [name, url]));
      player.load({ id: job.job_id, title: title(job.request?.lyrics), url: urls.mix, streaming: false, stems: urls });
    }
    player.setStem(track, change);
  }

  draw(row) {
    const stem = this.stem(row.dataset.track);
    row.querySelectorAll('.switch').forEach((button) => button.setAttribute('aria-pressed', String(stem[button.dataset.what])));
    row.querySelector('input').value = stem.volume;
    row.classList.toggle('silent', player.isAt(this.job.job_id) && !player.heard(row.dataset.track));
    row.paint?.();
  }

  release() {
    this.ends.forEach((end) => end());
    this.ends = [];
  }
}
