// The view of one song: how it comes about, how it sounds, what can be done with it.

import { call } from './api.js';
import { announce, h, icon, say } from './dom.js';
import { follow } from './jobs.js';
import { Mixer } from './mixer.js';
import { models } from './model_state.js';
import { onTime, player } from './player.js';
import { inPageWords } from './plain_errors.js';
import { actions, downloads } from './song_actions.js';
import { noSong, songLayout } from './song_layout.js';
import { songs } from './store.js';
import { split } from './tags.js';
import { followTakes } from './takes.js';
import { Timeline } from './timeline.js';
import { clock, doing, FINISHED, left, title, when } from './words.js';

const PAUSE_MS = 1000; // between two looks at a waveform that grows
const ENOUGH_SECONDS = 5; // that can be played, before a song begins by itself

export class SongView {
  constructor(place, edit) {
    this.place = place;
    this.edit = edit;
  }

  /** Show a song. A `fresh` one is played as soon as there is enough of it. */
  show(id, fresh = false) {
    this.hide();
    Object.assign(this, { id, fresh, job: null, peaks: null, reading: null, ready: null, looking: false, told: '', drawn: '' });
    this.timeline = new Timeline((seconds) => this.seek(seconds), () => this.toggle());
    this.mixer = new Mixer();
    Object.assign(this, songLayout(this.place, this.timeline.element, this.mixer.element, () => this.toggle()));
    this.ends = [
      follow(id, (job) => this.take(job), (problem) => this.fail(problem)),
      onTime(() => this.drawTime()),
      this.onModels(),
      ...followTakes(this.takes, id),
    ];
  }

  onModels() {
    const change = () => this.job && !FINISHED.includes(this.job.status) && this.draw(false);
    models.addEventListener('change', change);
    models.soon();
    return () => models.removeEventListener('change', change);
  }

  hide() {
    this.ends?.forEach((end) => end());
    this.timeline?.release();
    this.mixer?.release();
    this.ends = null;
  }

  take(job) {
    const first = !this.job;
    const before = this.job?.progress?.playable_seconds ?? 0;
    const ended = FINISHED.includes(job.status);
    const endsNow = ended && !FINISHED.includes(this.job?.status);
    this.job = job;
    if (first) this.readLyrics();
    if (endsNow && job.status === 'succeeded') this.mixer.show(job);
    if (first || endsNow || (job.progress?.playable_seconds ?? 0) > before) this.look();
    this.draw(ended);
    this.feed(ended);
    this.tell();
  }

  fail(problem) {
    const message = problem.status === 404 ? 'This song is not here any more: it was deleted, or it grew old.' : problem.message;
    if (problem.status === 404) songs.remove(this.id);
    if (this.job) say(this.error, message);
    else noSong(this.place, message);
  }

  get track() {
    return this.job.request?.tracks?.[0] ?? 'mix';
  }

  get sections() {
    return this.reading?.sections.filter((section) => section.generated) ?? [];
  }

  /** How the words are divided, for the sections that are still to come and for the words beside the music. */
  async readLyrics() {
    const { id } = this;
    const { genres, lyrics, segments, max_new_tokens: tokens } = this.job.request ?? {};
    if (!lyrics) return;
    const fields = { genres, lyrics, max_new_tokens: tokens, ...(segments ? { segments } : {}) };
    const reading = await call('check', { method: 'POST', json: fields }).catch(() => null);
    if (!reading || this.id !== id) return;
    this.reading = models.fitted(reading);
    this.drawLyrics();
    this.drawTimeline();
    this.draw(FINISHED.includes(this.job.status));
  }

  /** Fetch the waveform, and again while the song has more than it shows. */
  async look() {
    const { id } = this;
    if (this.looking || (!this.job.progress && this.job.status !== 'succeeded')) return;
    this.looking = true;
    const peaks = await call(`jobs/${id}/peaks/${this.track}.json`).catch(() => null);
    if (this.id !== id || !this.ends) return;
    if (peaks) {
      this.peaks = peaks;
      this.drawTimeline();
    }
    await new Promise((resolve) => { setTimeout(resolve, peaks?.complete ? 0 : PAUSE_MS); });
    if (this.id !== id || !this.ends) return;
    this.looking = false;
    const playable = this.job.progress?.playable_seconds ?? 0;
    if (peaks && (this.job.status === 'succeeded' ? !peaks.complete : playable > peaks.seconds + 0.1)) this.look();
  }

  drawTimeline() {
    const known = this.peaks?.seconds ?? this.job.duration_seconds ?? 0;
    const done = this.peaks?.sections ?? this.job.segments ?? [];
    const complete = this.peaks?.complete || this.job.status === 'succeeded';
    const sections = [...done];
    const last = complete ? null : sections.pop(); // it may go on
    let end = sections.at(-1)?.end_seconds ?? 0;
    if (last) {
      end = Math.max(last.end_seconds, last.start_seconds + (this.sections[done.length - 1]?.expected_seconds ?? 0));
      sections.push({ ...last, end_seconds: end });
    }
    for (const section of complete ? [] : this.sections.slice(done.length)) {
      sections.push({ tag: section.tag, start_seconds: end, end_seconds: end + section.expected_seconds, expected: true });
      end += section.expected_seconds;
    }
    this.timeline.set({ peaks: this.peaks?.peaks ?? [], known, total: complete ? known || end : Math.max(end, known), sections });
    this.drawTime();
  }

  /** Give the player what there is of the song: its stream, and once it is finished its files. */
  feed(ended) {
    const { job } = this;
    const tracks = job.tracks ?? {};
    const song = { id: job.job_id, title: this.title.textContent };
    if (job.status === 'succeeded') {
      Object.assign(song, { url: tracks[this.track].url, streaming: false, stems: { vocal: tracks.vocal?.url, instrumental: tracks.instrumental?.url } });
      if (player.isAt(job.job_id)) player.upgrade(song);
      this.ready = song;
    } else if (!ended && job.stream_url && job.progress?.playable_seconds > 0) {
      this.ready = { ...song, url: job.stream_url, streaming: true };
      if (player.isAt(job.job_id) && player.failed) player.load(this.ready);
    } else if (ended) {
      this.ready = null;
    }
    this.play.disabled = !this.ready && !player.isAt(this.id);
    const enough = job.status === 'succeeded' || (job.progress?.playable_seconds ?? 0) >= ENOUGH_SECONDS;
    if (this.fresh && this.ready && enough) {
      this.fresh = false;
      if (!player.playing) this.toggle();
    }
    this.drawTime();
  }

  toggle() {
    if (player.isAt(this.id)) {
      player.toggle();
    } else if (this.ready) {
      player.load(this.ready);
      player.play();
    }
  }

  seek(seconds) {
    if (!this.ready) return;
    if (!player.isAt(this.id)) player.load(this.ready);
    player.seek(seconds);
    this.drawTime();
  }

  draw(ended) {
    const { job } = this;
    const { request } = job;
    const now = (job.status === 'queued' && !job.cancel_requested && models.waits) || doing(job, this.sections.map((section) => section.tag));
    this.title.textContent = title(request?.lyrics);
    document.title = `${this.title.textContent} · YuE Studio`;
    this.tags.textContent = split(request?.genres ?? '').join(' · ');
    this.stage.textContent = [now, left(job)].filter(Boolean).join(' · ');
    this.stage.hidden = job.status === 'succeeded';
    this.bar.hidden = ended;
    if (job.progress && job.status === 'running') this.bar.value = job.progress.fraction;
    else this.bar.removeAttribute('value');
    say(this.notice, ended || job.progress || models.isTiny ? '' : models.notice);
    say(this.demo, job.model === 'tiny' ? 'Made by “tiny”, a demonstration: it hums a tune and cannot sing words.' : '');
    say(this.error, ended && job.error && job.status !== 'cancelled' ? job.error.detail : '');
    this.facts.textContent = [`seed ${job.seed}`, job.model, request?.format?.toUpperCase(), when(job.created_at)].filter(Boolean).join(' · ');
    this.remarks.replaceChildren(...(job.warnings ?? []).map((warning) => h('li', {}, inPageWords(warning))));
    const state = ended ? job.status : `unfinished ${job.cancel_requested}`;
    if (this.drawn !== state) {
      this.drawn = state;
      this.actions.replaceChildren(...actions(job, this));
      this.downloads.replaceChildren(...downloads(job, this.title.textContent));
    }
  }

  drawLyrics() {
    this.lyrics.replaceChildren(h('h2', { class: 'sr' }, 'Words'), ...this.sections.map((section) => h('section', { class: 'stanza' },
      h('h3', {}, section.tag), ...section.lines.map((line) => h('p', {}, line)))));
  }

  drawTime() {
    const here = player.isAt(this.id);
    const time = here ? player.time : 0;
    const playing = here && player.playing;
    if (this.play.dataset.playing !== String(playing)) {
      this.play.dataset.playing = String(playing);
      this.play.replaceChildren(icon(playing ? 'pause' : 'play'));
      this.play.setAttribute('aria-label', playing ? 'Pause' : 'Play');
    }
    this.clock.textContent = `${clock(time)} / ${clock(this.timeline.known || (this.timeline.total > 1 ? this.timeline.total : 0))}`;
    this.timeline.setTime(time);
    const index = (this.peaks?.sections ?? []).findIndex((each) => time > 0 && time >= each.start_seconds && time < each.end_seconds);
    this.lyrics.querySelectorAll('.stanza').forEach((stanza, number) => stanza.classList.toggle('here', number === index));
  }

  /** Tell changes of stage and section, not every per cent. */
  tell() {
    const now = doing(this.job, this.sections.map((section) => section.tag));
    if (now === this.told) return;
    this.told = now;
    announce(`${this.title.textContent}: ${now}`);
  }

  /** It was deleted. */
  gone() {
    songs.remove(this.id);
    if (player.isAt(this.id)) player.stop();
    location.hash = '#/library';
  }
}
