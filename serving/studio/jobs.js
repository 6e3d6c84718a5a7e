// Submits songs and follows them until they end.

import { address, call, Problem } from './api.js';
import { pending, songs } from './store.js';
import { FINISHED } from './words.js';

const POLL_MS = 2000;

/** An id that nobody else draws. */
export function randomId() {
  return [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, '0')).join('');
}

/** Ask for so many takes of a song: the predictions, each a job or with an `error`. Asking again makes no second song. */
export async function submit(fields, takes, group = randomId()) {
  const instances = Array.from({ length: takes }, (_, index) => ({
    ...fields,
    ...(fields.seed == null ? {} : { seed: fields.seed + index }),
    request_id: `studio-${group}.${index + 1}`,
    ...(index ? {} : { stream: true }), // the first take is listened to while it is generated
  }));
  if (!fields.reference) pending.write({ fields, takes, group });
  try {
    const answer = await call('predict', { method: 'POST', json: { instances, parameters: { wait_seconds: 0 } } });
    songs.add(answer.predictions.filter((each) => each.job_id).map((each) => each.job_id), takes > 1 ? group : null);
    return answer.predictions;
  } finally {
    pending.write(null);
  }
}

/** Send again what a reload cut off. */
export async function resubmit() {
  const cut = pending.read();
  return cut ? submit(cut.fields, cut.takes, cut.group) : [];
}

/**
 * Follow a job: `onView` gets it now, whenever it changes, and when it has ended; `onProblem` what went wrong.
 * By events, or where those are refused (or `events` is false) by asking again and again. Returns a function that stops.
 */
export function follow(id, onView, onProblem, events = true) {
  const control = new AbortController();
  const { signal } = control;
  const path = `jobs/${encodeURIComponent(id)}`;
  let view = null;

  const take = (news) => {
    view = { ...view, ...news };
    if (!signal.aborted) onView(view);
    return FINISHED.includes(view.status);
  };
  const look = async () => {
    try {
      return take(await call(path, { signal }));
    } catch (error) {
      if (!signal.aborted) onProblem(error instanceof Problem ? error : new Problem(0, { detail: String(error) }));
      return true;
    }
  };
  const poll = async () => {
    while (!signal.aborted && !(await look())) await new Promise((resolve) => { setTimeout(resolve, POLL_MS); });
  };
  const listen = () => {
    const source = new EventSource(address(`${path}/events`));
    signal.addEventListener('abort', () => source.close());
    source.addEventListener('progress', (event) => take(JSON.parse(event.data)));
    source.addEventListener('end', (event) => { source.close(); take(JSON.parse(event.data)); });
    source.addEventListener('problem', () => { source.close(); poll(); });
    source.addEventListener('error', () => {
      if (source.readyState === EventSource.CLOSED) poll();
      else call('livez', { signal }).catch(() => {}); // the browser reconnects; this shows that the server is away
    });
  };

  (async () => {
    if (!(await look()) && !signal.aborted) (events ? listen : poll)();
  })();
  return () => control.abort();
}
