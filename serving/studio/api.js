// Asks the server. A server that does not answer is waited for; a missing key is asked for.
// Independent of what is asked.

const LOOK_AGAIN_MS = 1500;

/** Sends `away` and `back` as the server goes and returns. */
export const server = new EventTarget();

/** What `call` does where a key is missing: set by `session.js`. */
export const key = { ask: async () => {} };

/** An error in the server's words. `body` is the problem of RFC 9457. */
export class Problem extends Error {
  constructor(status, body) {
    super(body.detail || body.title || `the server answered with status ${status}`);
    this.status = status;
    this.body = body;
    this.kind = String(body.type || '').split(':').pop();
  }

  /** Each wrong field with its words. */
  get errors() {
    return this.body.errors?.length ? this.body.errors : [{ field: this.body.field, line: this.body.line, detail: this.message }];
  }
}

/** The address of a path of this server, below whatever prefix the page has. */
export const address = (path) => new URL(path.replace(/^\//, ''), document.baseURI).href;

let returning = null;

/** The JSON that the server answers with. Raises Problem; with `patient` false also while the server is away. */
export async function call(path, { method = 'GET', json, signal, patient = true } = {}) {
  const options = { method, signal, headers: { Accept: 'application/json' }, credentials: 'same-origin' };
  if (json !== undefined) {
    options.body = JSON.stringify(json);
    options.headers['Content-Type'] = 'application/json';
  }
  for (;;) {
    const answer = await attempt(address(path), options);
    if (answer?.ok) return answer.body;
    if (answer?.status === 401 && path !== 'session') await key.ask();
    else if (answer && !answer.away) throw new Problem(answer.status, answer.body);
    else if (!patient) throw new Problem(503, { detail: 'The server does not answer.' });
    else await backAgain();
    signal?.throwIfAborted();
  }
}

async function attempt(url, options) {
  let response;
  try {
    response = await fetch(url, options);
    const body = response.status === 204 ? {} : await response.json();
    const away = body.type === 'urn:yue:problem:stopping';
    return { ok: response.ok, status: response.status, body, away };
  } catch (error) {
    if (options.signal?.aborted) throw error;
    if (!response || response.ok || response.status >= 502) return null; // no answer, or a proxy's own
    return { ok: false, status: response.status, body: {} };
  }
}

function backAgain() {
  returning ??= look().finally(() => { returning = null; });
  return returning;
}

async function look() {
  server.dispatchEvent(new Event('away'));
  for (;;) {
    await new Promise((resolve) => { setTimeout(resolve, LOOK_AGAIN_MS); });
    try {
      const response = await fetch(address('livez'), { cache: 'no-store' });
      if (response.ok) break;
    } catch { /* it is still away */ }
  }
  server.dispatchEvent(new Event('back'));
}
