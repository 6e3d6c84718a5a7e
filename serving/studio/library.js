// The songs of this server, or where only administrators may list those, of this browser.

import { call, Problem } from './api.js';
import { announce, confirmButton, h, icon, say } from './dom.js';
import { onTime, player } from './player.js';
import { songs } from './store.js';
import { split } from './tags.js';
import { clock, count, doing, FINISHED, title, when } from './words.js';

const PAGE = 20;
const REFRESH_MS = 4000;

export class LibraryView {
  constructor(place, edit) {
    this.place = place;
    this.edit = edit;
    this.list = h('ul', { class: 'songs' });
    this.more = h('button', { type: 'button', class: 'quiet', hidden: true, onclick: () => this.load() }, 'Show more');
    this.empty = h('div', { class: 'empty', hidden: true }, h('p', {}, 'No songs yet.'), h('a', { class: 'button primary', href: '#/write' }, 'Write the first one'));
    this.scope = h('p', { class: 'soft' });
    this.error = h('p', { class: 'error', role: 'alert', hidden: true });
    place.append(h('div', { class: 'view-head' }, h('h1', { id: 'library-title' }, 'Library'), this.scope), this.error, this.list, this.empty, this.more);
  }

  show() {
    this.rows = new Map();
    this.list.replaceChildren();
    this.next = null;
    this.own = null; // ids of this browser that are still to be shown, where the server lists none
    this.load();
    this.ends = [onTime(() => this.drawPlaying())];
    const timer = setInterval(() => this.refresh(), REFRESH_MS);
    this.ends.push(() => clearInterval(timer));
  }

  hide() {
    this.ends?.forEach((end) => end());
    this.ends = null;
  }

  async load() {
    say(this.error, '');
    try {
      const jobs = this.own ? await this.ownJobs() : await this.listed();
      jobs.forEach((job) => this.put(job));
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      if (error.status === 403 && !this.own) {
        this.own = songs.all().map((song) => song.id);
        await this.load();
        return;
      }
      say(this.error, error.message);
    }
    this.more.hidden = this.own ? !this.own.length : !this.next;
    this.empty.hidden = this.rows.size > 0;
    this.scope.textContent = this.own ? 'The songs that this browser asked for.' : 'The songs of this server.';
  }

  async listed() {
    const page = await call(`jobs?limit=${PAGE}${this.next ? `&before=${encodeURIComponent(this.next)}` : ''}`);
    this.next = page.next;
    return page.jobs;
  }

  async ownJobs() {
    const found = await Promise.all(this.own.splice(0, PAGE).map((id) => this.look(id)));
    return found.filter(Boolean);
  }

  async look(id) {
    try {
      return await call(`jobs/${encodeURIComponent(id)}`);
    } catch (error) {
      if (error.status === 404) songs.remove(id);
      return null;
    }
  }

  /** Look again at the songs that are not finished. */
  async refresh() {
    const open = [...this.rows.values()].filter(({ job, row }) => !FINISHED.includes(job.status) && !row.querySelector('.asking'));
    for (const { job } of open.slice(0, PAGE)) {
      const news = await this.look(job.job_id);
      if (news && this.rows.has(job.job_id)) this.put(news);
    }
  }

  put(job) {
    const row = this.row(job);
    const before = this.rows.get(job.job_id);
    if (before) {
      const focused = [...before.row.querySelectorAll('a, button')].indexOf(document.activeElement);
      before.row.replaceWith(row);
      row.querySelectorAll('a, button')[focused]?.focus();
    } else {
      this.list.append(row);
    }
    this.rows.set(job.job_id, { job, row });
    this.drawPlaying();
  }

  row(job) {
    const name = title(job.request?.lyrics);
    const done = job.status === 'succeeded';
    const state = done ? clock(job.duration_seconds) : doing(job);
    const facts = [`seed ${job.seed}`, job.model, when(job.created_at)].filter(Boolean).join(' · ');
    const play = h('button', { type: 'button', class: 'play small', disabled: !done, 'data-name': name, onclick: () => this.play(job, name) }, icon('play'));
    return h('li', { class: 'card row' }, play,
      h('div', { class: 'row-words' },
        h('a', { class: 'row-title', href: `#/song/${job.job_id}` }, name),
        h('p', { class: 'tag-line' }, split(job.request?.genres ?? '').join(' · ')),
        h('p', { class: 'soft small' }, facts)),
      h('span', { class: `state is-${job.status}` }, state),
      h('div', { class: 'actions' },
        h('button', { type: 'button', class: 'quiet small', disabled: !job.request, 'aria-label': `Open ${name} in the editor`, onclick: () => this.open(job) }, 'Edit'),
        confirmButton(FINISHED.includes(job.status) ? 'Delete' : 'Cancel', 'Sure?', () => this.remove(job, name))));
  }

  play(job, name) {
    if (player.isAt(job.job_id)) {
      player.toggle();
      return;
    }
    const urls = Object.fromEntries(Object.entries(job.tracks).map(([track, { url }]) => [track, url]));
    player.load({ id: job.job_id, title: name, url: Object.values(urls)[0], streaming: false, stems: urls });
    player.play();
  }

  /** The list shortens long lyrics, so the whole job is fetched. */
  async open(job) {
    const whole = await this.look(job.job_id);
    if (whole) this.edit(whole);
    else say(this.error, 'This song is not here any more.');
  }

  async remove(job, name) {
    try {
      const answer = await call(`jobs/${job.job_id}`, { method: 'DELETE' });
      if (!answer.deleted) {
        this.put(answer);
        return;
      }
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      if (error.status !== 404) {
        say(this.error, error.message);
        return;
      }
    }
    songs.remove(job.job_id);
    if (player.isAt(job.job_id)) player.stop();
    const { row } = this.rows.get(job.job_id);
    const neighbour = row.nextElementSibling ?? row.previousElementSibling;
    const focused = row.contains(document.activeElement) || document.activeElement === document.body;
    row.remove();
    this.rows.delete(job.job_id);
    this.empty.hidden = this.rows.size > 0;
    if (focused) (neighbour ?? this.empty).querySelector('a').focus();
    announce(`Deleted ${name}. ${count(this.rows.size, 'song')} left.`);
  }

  drawPlaying() {
    for (const [id, { row }] of this.rows) {
      const playing = player.isAt(id) && player.playing;
      const button = row.querySelector('.play');
      if (button.dataset.playing === String(playing)) continue;
      button.dataset.playing = String(playing);
      button.setAttribute('aria-label', `${playing ? 'Pause' : 'Play'} ${button.dataset.name}`);
      button.replaceChildren(icon(playing ? 'pause' : 'play'));
    }
  }
}
