// The waveform of a song with its sections: shows the position, and goes where it is clicked or keys say.

import { h } from './dom.js';
import { draw, onStale } from './waveform.js';
import { clock } from './words.js';

const STEP_SECONDS = 5;

export class Timeline {
  /** `onSeek` gets seconds. */
  constructor(onSeek, onToggle) {
    Object.assign(this, { onSeek, onToggle });
    Object.assign(this, { peaks: [], known: 0, total: 1, time: 0, sections: [] });
    this.canvas = h('canvas', { 'aria-hidden': 'true' });
    this.slider = h('div', {
      class: 'wave', role: 'slider', tabindex: 0, 'aria-label': 'Position in the song', 'aria-valuemin': 0,
      onkeydown: (event) => this.onKey(event), onpointerdown: (event) => this.onPointer(event),
    }, this.canvas);
    this.marks = h('div', { class: 'marks-row', role: 'group', 'aria-label': 'Sections' });
    this.element = h('div', { class: 'timeline' }, this.slider, this.marks);
    this.release = onStale(this.canvas, () => this.paint());
  }

  /** Show these peaks: `known` seconds of a song that is expected to last `total`. */
  set({ peaks, known, total, sections }) {
    Object.assign(this, { peaks, known, total: Math.max(total, known, 1), sections });
    this.slider.setAttribute('aria-valuemax', Math.round(this.total));
    this.slider.classList.toggle('growing', known < total);
    this.marks.replaceChildren(...sections.map((section) => this.mark(section)));
    this.setTime(this.time);
  }

  mark({ tag, start_seconds: start, end_seconds: end, expected }) {
    const mark = h('button', {
      type: 'button', class: expected ? 'expected' : '', disabled: start >= this.known,
      'aria-label': `${tag}, at ${clock(start)}`, onclick: () => this.onSeek(start),
    }, h('span', {}, tag));
    mark.style.left = `${(100 * start) / this.total}%`;
    mark.style.width = `${(100 * (Math.min(end, this.total) - start)) / this.total}%`;
    return mark;
  }

  setTime(time) {
    this.time = time;
    this.slider.setAttribute('aria-valuenow', Math.round(time));
    this.slider.setAttribute('aria-valuetext', `${clock(time)} of ${clock(this.total)}`);
    this.sections.forEach((section, index) => {
      const here = time > 0 && time >= section.start_seconds && time < section.end_seconds;
      this.marks.children[index]?.classList.toggle('here', here);
    });
    this.paint();
  }

  paint() {
    draw(this.canvas, this.peaks, { played: this.time / this.total, known: this.known / this.total });
  }

  seek(seconds) {
    this.onSeek(Math.min(Math.max(0, seconds), Math.max(0, this.known - 0.05)));
  }

  onPointer(event) {
    const at = (each) => {
      const { left, width } = this.slider.getBoundingClientRect();
      this.seek((this.total * (each.clientX - left)) / width);
    };
    const stop = () => this.slider.removeEventListener('pointermove', at);
    this.slider.setPointerCapture(event.pointerId);
    this.slider.addEventListener('pointermove', at);
    this.slider.addEventListener('pointerup', stop, { once: true });
    this.slider.addEventListener('pointercancel', stop, { once: true });
    at(event);
  }

  onKey(event) {
    const targets = {
      ArrowRight: this.time + STEP_SECONDS, ArrowUp: this.time + STEP_SECONDS, ArrowLeft: this.time - STEP_SECONDS,
      ArrowDown: this.time - STEP_SECONDS, PageUp: this.time + 15, PageDown: this.time - 15, Home: 0, End: this.known,
    };
    if (!(event.key in targets) && event.key !== ' ') return;
    event.preventDefault();
    if (event.key === ' ') {
      this.onToggle();
      return;
    }
    this.seek(targets[event.key]);
  }
}
