// The studio: starts its parts, and shows the view that the address names.

import { server } from './api.js';
import { byId, say } from './dom.js';
import { beginDock } from './dock.js';
import { resubmit } from './jobs.js';
import { LibraryView } from './library.js';
import { models } from './model_state.js';
import { ModelsView } from './models.js';
import { begin } from './session.js';
import { SongView } from './song.js';
import { beginTheme } from './theme.js';
import { WriteView } from './write.js';

const NAMES = ['write', 'song', 'library', 'models'];
const fresh = new Set(); // songs that were asked for since the page was opened

async function start() {
  beginTheme();
  server.addEventListener('away', () => setAway('The server does not answer. The page waits for it and goes on by itself.'));
  server.addEventListener('back', () => setAway(''));
  await begin();
  beginDock();
  models.addEventListener('change', drawPill);
  models.watch();

  const open = (id) => { fresh.add(id); location.hash = `#/song/${id}`; };
  const write = new WriteView(open);
  const edit = (job) => { write.fill({ ...job.request }); location.hash = '#/write'; };
  const views = {
    write,
    song: new SongView(byId('view-song'), edit),
    library: new LibraryView(byId('view-library'), edit),
    models: new ModelsView(byId('view-models')),
  };
  const show = (byHand) => showView(views, byHand);
  addEventListener('hashchange', () => show(true));
  show(false);
  const [again] = await resubmit().catch(() => []);
  if (again?.job_id) open(again.job_id);
}

let shown = null;

function showView(views, byHand) {
  const [, name = 'write', id] = location.hash.split('/');
  const wanted = NAMES.includes(name) && (name !== 'song' || id) ? name : 'write';
  shown?.hide?.();
  for (const each of NAMES) byId(`view-${each}`).hidden = each !== wanted;
  document.querySelectorAll('nav [data-view]').forEach((link) => {
    if (link.dataset.view === wanted) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  });
  document.title = wanted === 'write' ? 'YuE Studio' : `${wanted[0].toUpperCase()}${wanted.slice(1)} · YuE Studio`;
  shown = views[wanted];
  shown.show(id, fresh.delete(id));
  if (!byHand) return;
  byId('main').focus({ preventScroll: true });
  scrollTo(0, 0);
}

function setAway(message) {
  say(byId('away'), message);
  drawPill();
}

function drawPill() {
  const pill = byId('model-pill');
  const away = !byId('away').hidden;
  pill.hidden = !models.status;
  pill.textContent = `${models.name} · ${away ? 'server away' : models.words}`;
  pill.className = `pill is-${away ? 'away' : models.status?.status}`;
}

start();
