// What can be done with one song: open it in the editor, copy it as a line, cancel or delete it, download its tracks.

import { call, Problem } from './api.js';
import { copy, curlLine } from './curl.js';
import { announce, confirmButton, h, icon, say } from './dom.js';
import { FINISHED } from './words.js';

/** The buttons for a job, as it is shown by `view`. */
export function actions(job, view) {
  const act = async (does) => {
    try {
      await does();
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      say(view.error, error.message);
    }
  };
  const button = (label, onclick, more = {}) => h('button', { type: 'button', class: 'quiet', onclick, ...more }, label);
  const line = button('Copy as a curl line', async () => {
    line.textContent = (await copy(curlLine(job.request))) ? 'Copied' : 'The browser does not allow it';
    announce(line.textContent);
  });
  const cancel = () => act(async () => view.take(await call(`jobs/${job.job_id}/cancel`, { method: 'POST' })));
  const remove = () => act(async () => {
    await call(`jobs/${job.job_id}`, { method: 'DELETE' });
    view.gone();
  });
  return [
    button('Open in the editor', () => view.edit(job), { disabled: !job.request }),
    ...(job.request ? [line] : []),
    FINISHED.includes(job.status) ? confirmButton('Delete', 'Really delete it?', remove)
      : button('Cancel', cancel, { class: 'quiet danger', disabled: job.cancel_requested }),
  ];
}

const STREAM_FORMATS = ['mp3', 'ogg', 'wav'];

/** A link for each track of a finished song, and a choice of formats: its own, and those that it can be streamed in. */
export function downloads(job, title) {
  const tracks = Object.entries(job.tracks ?? {});
  if (!tracks.length) return [];
  const formats = job.stream_url ? [...new Set([job.format, ...STREAM_FORMATS])] : [job.format];
  const links = tracks.map(([track]) => h('a', { class: 'quiet button' }, icon('download'), track));
  const choose = (format) => tracks.forEach(([track, { url }], index) => {
    const path = format === job.format ? url.replace(/^\//, '') : `jobs/${job.job_id}/stream/${track}.${format}`;
    links[index].href = path;
    links[index].download = `${title} - ${track}.${format}`;
    links[index].setAttribute('aria-label', `Download ${track}, ${format}`);
  });
  choose(job.format);
  const choice = h('select', { 'aria-label': 'Format of the downloads', onchange: (event) => choose(event.target.value) },
    ...formats.map((format) => h('option', { value: format }, format.toUpperCase())));
  return formats.length > 1 ? [...links, choice] : links;
}
