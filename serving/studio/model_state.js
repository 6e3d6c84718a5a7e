// The state of the server's models, looked at again and again: often while it changes.

import { call } from './api.js';
import { size, span } from './words.js';

const SOON_MS = 1000;
const LATER_MS = 10_000;
const TINY_SECTION_SECONDS = 5;
const BUSY = ['downloading', 'loading'];

class ModelState extends EventTarget {
  status = null;

  /** Look from now on. */
  async watch() {
    for (;;) {
      await this.look().catch(() => {});
      await new Promise((resolve) => {
        this.wake = resolve;
        setTimeout(resolve, this.busy ? SOON_MS : LATER_MS);
      });
    }
  }

  async look() {
    this.status = await call('models/status');
    this.dispatchEvent(new Event('change'));
  }

  /** Look now, as something has changed. */
  soon() {
    this.wake?.();
  }

  get busy() {
    return BUSY.includes(this.status?.status) || BUSY.includes(this.status?.next?.status);
  }

  get name() {
    return this.status?.model ?? '';
  }

  get isTiny() {
    return this.name === 'tiny';
  }

  get takesReference() {
    return !this.name || this.isTiny || /-icl$/.test(this.name);
  }

  /** How the server read some lyrics, with the lengths that this model makes of them. */
  fitted(reading) {
    if (!this.isTiny || !reading) return reading;
    const sections = reading.sections.map((section) => ({ ...section, expected_seconds: Math.min(section.expected_seconds, TINY_SECTION_SECONDS) }));
    return { ...reading, sections, expected_seconds: sections.reduce((sum, each) => sum + each.expected_seconds, 0) };
  }

  /** The state in a few words. */
  get words() {
    const { status, download, next } = this.status ?? {};
    if (status === 'ready') return next ? `ready, ${next.model} is on its way` : 'ready';
    if (status === 'downloading') return `downloading${share(download) == null ? '' : ` ${Math.floor(100 * share(download))} %`}`;
    return { loading: 'loading', not_loaded: 'not loaded yet', error: 'needs attention' }[status] ?? '';
  }

  /** What a queued song waits for besides its turn. */
  get waits() {
    return { not_loaded: 'Waiting for the model', loading: 'Waiting for the model to load', downloading: 'Waiting for the weights' }[this.status?.status];
  }

  /** What somebody who is about to generate a song should know. */
  get notice() {
    const { status, download } = this.status ?? {};
    if (this.isTiny) return 'This server runs the demonstration model “tiny”: it hums a tune and cannot sing words.';
    if (status === 'not_loaded') return `The weights of ${this.name} come first: the first song waits until they are downloaded and loaded.`;
    if (status === 'downloading') return `The weights of ${this.name} come first: ${progress(download) || 'the download is starting'}. Songs wait for them.`;
    if (status === 'loading') return `The model ${this.name} is being loaded; songs wait for it.`;
    if (status === 'error') return `The model ${this.name} could not be loaded. See Models for what to do.`;
    return '';
  }
}

export const models = new ModelState();

/** How much of a download is there, 0 … 1, or null. */
export function share(download) {
  const [done, total] = [download?.overall_done ?? download?.bytes_done, download?.overall_total ?? download?.bytes_total];
  return total ? done / total : null;
}

/** A download in words: bytes, rate, time. */
export function progress(download) {
  if (share(download) == null) return '';
  const words = [`${size(download.bytes_done)} of ${size(download.bytes_total)}`];
  if (download.bytes_per_second) words.push(`${size(download.bytes_per_second)}/s`);
  if (download.seconds_left != null) words.push(`about ${span(download.seconds_left)} left`);
  return words.join(', ');
}
