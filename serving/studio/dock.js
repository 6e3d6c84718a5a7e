// The small player at the foot of the page, while a song is heard that another view shows.

import { byId, h, icon } from './dom.js';
import { onTime, player } from './player.js';
import { clock } from './words.js';

export function beginDock() {
  const dock = byId('dock');
  const play = h('button', { type: 'button', class: 'play small', onclick: () => player.toggle() });
  const title = h('a', { class: 'row-title' });
  const time = h('span', { class: 'soft' });
  const close = h('button', { type: 'button', class: 'quiet small', onclick: () => player.stop() }, 'Close');
  dock.append(play, title, time, close);
  const draw = () => {
    dock.hidden = !player.song || location.hash === `#/song/${player.song.id}`;
    if (dock.hidden) return;
    title.textContent = player.song.title || 'Song';
    title.href = `#/song/${player.song.id}`;
    time.textContent = clock(player.time);
    const playing = String(player.playing);
    if (play.dataset.playing === playing) return;
    play.dataset.playing = playing;
    play.replaceChildren(icon(player.playing ? 'pause' : 'play'));
    play.setAttribute('aria-label', player.playing ? 'Pause' : 'Play');
  };
  onTime(draw);
  addEventListener('hashchange', draw);
}
