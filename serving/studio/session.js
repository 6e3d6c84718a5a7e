// The key: asked for once where the server has one, and kept as a cookie that scripts cannot read.

import { call, key, Problem } from './api.js';
import { byId, say } from './dom.js';

export const session = { signedIn: true, keyRequired: false, mayAdminister: false };

let asking = null;

/** Learn how this browser stands with the server, and ask for the key where one is missing. */
export async function begin() {
  key.ask = ask;
  take(await call('session'));
  if (session.keyRequired && !session.signedIn) await ask();
  byId('log-out').addEventListener('click', async () => {
    await call('session', { method: 'DELETE' });
    location.reload();
  });
}

function take(answer) {
  session.signedIn = answer.signed_in;
  session.keyRequired = answer.key_required;
  session.mayAdminister = answer.may_administer;
  byId('log-out').hidden = !(session.keyRequired && session.signedIn);
}

/** Ask for the key until one opens the server. */
function ask() {
  asking ??= new Promise((resolve) => {
    const dialog = byId('key-dialog');
    const form = byId('key-form');
    const send = async (event) => {
      event.preventDefault();
      say(byId('error-key'), '');
      try {
        take(await call('session', { method: 'POST', json: { key: byId('key').value.trim() } }));
      } catch (error) {
        if (!(error instanceof Problem)) throw error;
        say(byId('error-key'), error.message);
        byId('key').setAttribute('aria-invalid', 'true');
        byId('key').select();
        return;
      }
      form.removeEventListener('submit', send);
      byId('key').value = '';
      byId('key').removeAttribute('aria-invalid');
      dialog.close();
      resolve();
    };
    form.addEventListener('submit', send);
    dialog.addEventListener('cancel', (event) => event.preventDefault());
    dialog.showModal();
  }).finally(() => { asking = null; });
  return asking;
}
