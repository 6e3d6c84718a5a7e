// The view of the server's models: what is loaded, how far a download is, what went wrong and what to do.

import { call, Problem } from './api.js';
import { confirmButton, h, say } from './dom.js';
import { models, progress, share } from './model_state.js';
import { session } from './session.js';
import { size, span, when } from './words.js';

const NAMES = {
  'en-cot': 'English', 'en-icl': 'English, with reference', 'zh-cot': 'Chinese', 'zh-icl': 'Chinese, with reference',
  'jp-kr-cot': 'Japanese and Korean', 'jp-kr-icl': 'Japanese and Korean, with reference', tiny: 'Demonstration: hums a tune',
};
const TITLES = {
  not_loaded: 'is not loaded yet', downloading: 'is being downloaded', loading: 'is being loaded', ready: 'is ready', error: 'could not be loaded',
};
const DOWNLOAD = 'A model is a download of up to 16 GB. It needs a GPU: 80 GB of memory for full songs, 40 GB for shorter ones.';
const PARTS = { stage1: 'the first stage', stage2: 'the second stage', codec: 'the decoder' };

export class ModelsView {
  constructor(place) {
    this.state = h('div', { class: 'card model' });
    this.failure = h('p', { class: 'error', role: 'alert', hidden: true });
    this.name = h('input', { id: 'model-name', type: 'text', list: 'model-names', placeholder: 'en-cot', autocomplete: 'off' });
    this.button = this.confirmed('Load it', () => this.load({ model: this.name.value.trim() }), () => this.name.value.trim());
    this.chooser = h('form', { class: 'card chooser', onsubmit: (event) => { event.preventDefault(); this.button.click(); } },
      h('h2', {}, 'Load another model'),
      h('p', { class: 'soft' }, DOWNLOAD),
      h('p', { class: 'soft' }, 'The loaded one goes on generating songs until the other one is here.'),
      h('ul', { class: 'models' }, Object.entries(NAMES).map(([name, words]) => h('li', {},
        h('button', { type: 'button', class: 'chip', 'data-model': name, onclick: () => this.choose(name) }, name), h('span', { class: 'soft' }, words)))),
      h('label', { for: 'model-name' }, 'Model, or owner/name@revision'),
      h('div', { class: 'line' }, this.name, this.button));
    this.closed = h('p', { class: 'soft' }, 'On this server only an administrator loads another model.');
    place.append(h('div', { class: 'view-head' }, h('h1', { id: 'models-title' }, 'Models')), this.state, this.failure, this.chooser, this.closed);
    models.addEventListener('change', () => { if (!place.hidden) this.draw(); });
  }

  show() {
    this.chooser.hidden = !session.mayAdminister;
    this.closed.hidden = session.mayAdminister;
    models.soon();
    this.draw();
  }

  /** A button that asks before it starts a large download. */
  confirmed(label, act, name) {
    const ask = confirmButton(label, 'Download up to 16 GB?', act);
    ask.className = 'primary';
    ask.addEventListener('click', (event) => {
      if (name() !== 'tiny') return;
      event.stopImmediatePropagation();
      act();
    }, { capture: true });
    return ask;
  }

  choose(name) {
    this.name.value = name;
    this.name.focus();
  }

  async load(fields = {}) {
    await this.act(() => call('download-models', { method: 'POST', json: { ...fields, wait: false } }));
  }

  async act(does) {
    say(this.failure, '');
    try {
      await does();
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      say(this.failure, error.message);
    }
    await models.look().catch(() => {});
    models.soon();
  }

  draw() {
    const { status } = models;
    if (!status) return;
    const told = JSON.stringify(status);
    if (told === this.told) return;
    this.told = told;
    const focused = document.activeElement?.dataset?.act;
    this.state.replaceChildren(...this.about(status), ...(status.next ? this.about(status.next) : []), ...this.error(status));
    if (focused) this.state.querySelector(`[data-act="${focused}"]`)?.focus();
  }

  about(state) {
    const { status, model, download, loading, engine } = state;
    const lines = [h('h2', {}, h('span', { class: `dot is-${status}` }), `${model} ${TITLES[status] ?? status}`)];
    if (model === 'tiny') lines.push(h('p', {}, '“tiny” is a demonstration: it hums a tune and cannot sing words. It needs no download and no GPU.'));
    if (status === 'not_loaded') lines.push(...this.first(model));
    if (status === 'downloading') lines.push(...this.downloading(download));
    if (status === 'loading') lines.push(h('p', { role: 'status' }, loading ? `Now ${PARTS[loading] ?? loading}.` : 'The engine starts.'), h('progress', { 'aria-label': 'Loading' }));
    if (engine) lines.push(h('p', { class: 'soft' }, this.engine(engine)));
    if (status === 'downloading' || status === 'loading') lines.push(this.cancel());
    if (status === 'error') lines.push(h('button', { type: 'button', class: 'primary', 'data-act': 'again', onclick: () => this.load() }, 'Try again'));
    return lines;
  }

  first(model) {
    const words = model === 'tiny' ? 'It loads with the first song, in a few seconds.'
      : `The weights are downloaded once and loaded with the first song. ${DOWNLOAD} Start now, as it takes a while.`;
    const button = this.confirmed('Load it now', () => this.load(), () => model);
    button.dataset.act = 'load';
    return [h('p', {}, words), button];
  }

  downloading(download) {
    const part = share(download);
    const waiting = download?.waiting?.reason;
    return [
      h('progress', { 'aria-label': 'Download', max: 1, value: part }),
      h('p', {}, progress(download) || 'The download is starting.'),
      waiting ? h('p', { class: 'notice' }, `Waiting: ${waiting}`) : '',
      h('ul', { class: 'soft small plain' }, Object.entries(download?.repositories ?? {}).map(([name, { bytes_done: done, bytes_total: total }]) => (
        h('li', {}, `${name}: ${size(done ?? 0)} of ${size(total ?? 0)}`)))),
    ];
  }

  engine({ device, dtype, memory_bytes: memory, max_songs: most }) {
    return [device && `on ${device}`, dtype, memory && `${size(memory)} of GPU memory`, most && `up to ${most} songs at once`].filter(Boolean).join(' · ');
  }

  cancel() {
    return session.mayAdminister ? h('button', {
      type: 'button', class: 'quiet danger', 'data-act': 'cancel', onclick: () => this.act(() => call('download-models', { method: 'DELETE' })),
    }, 'Stop it') : '';
  }

  error({ last_error: error, next_try_seconds: next }) {
    if (!error) return [];
    const advice = error.permanent ? 'Trying again fails in the same way until somebody has done something about it.' : 'Trying again may help; what is downloaded is kept.';
    return [h('div', { class: 'last-error' }, h('h3', {}, `Last error, ${when(error.at)}`), h('p', {}, error.detail), h('p', { class: 'soft' }, advice),
      next ? h('p', { class: 'soft' }, `The server tries again in ${span(next)}.`) : '')];
  }
}
