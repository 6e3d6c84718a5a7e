// The takes of one request: links from each to the others, with how far they are.

import { h } from './dom.js';
import { follow } from './jobs.js';
import { songs } from './store.js';

/** Fill the navigation for the takes beside this song. Returns the functions that end it. */
export function followTakes(place, shown) {
  const ids = songs.takes(shown);
  place.hidden = ids.length < 2;
  if (place.hidden) return [];
  const links = ids.map((id, index) => h('a', { href: `#/song/${id}`, 'aria-current': id === shown ? 'page' : null }, `Take ${index + 1}`));
  place.replaceChildren(...links);
  return ids.map((id, index) => follow(id, (job) => {
    const done = job.status === 'running' && job.progress ? ` · ${Math.floor(100 * job.progress.fraction)} %` : '';
    links[index].textContent = `Take ${index + 1}${done}`;
  }, () => links[index].remove(), false)); // by asking: browsers open few streams to one server
}
