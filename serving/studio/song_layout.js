// The elements of the view of one song.

import { h } from './dom.js';

/** Put the elements in their place, and return those that change. */
export function songLayout(place, timeline, mixer, toggle) {
  const parts = {
    title: h('h1', { id: 'song-title' }, 'Song'),
    tags: h('p', { class: 'tag-line' }),
    takes: h('nav', { class: 'takes', 'aria-label': 'Takes', hidden: true }),
    stage: h('p', { class: 'stage' }),
    bar: h('progress', { max: 1, 'aria-label': 'Progress of the song' }),
    play: h('button', { type: 'button', class: 'play', disabled: true, onclick: toggle }),
    clock: h('p', { class: 'clock' }),
    notice: h('p', { class: 'notice', hidden: true }),
    demo: h('p', { class: 'soft small', hidden: true }),
    error: h('p', { class: 'error', role: 'alert', hidden: true }),
    downloads: h('div', { class: 'downloads', role: 'group', 'aria-label': 'Downloads' }),
    actions: h('div', { class: 'actions' }),
    lyrics: h('div', { class: 'lyrics' }),
    facts: h('p', { class: 'soft small' }),
    remarks: h('ul', { class: 'remarks', 'aria-label': 'Notes on the song' }),
  };
  const { title, tags, takes, stage, bar, play, clock, notice, demo, error, downloads, actions, lyrics, facts, remarks } = parts;
  place.replaceChildren(
    h('div', { class: 'song-head' }, h('div', {}, title, tags), takes),
    h('div', { class: 'card stage-card' }, timeline,
      h('div', { class: 'transport' }, play, clock, h('div', { class: 'now' }, stage, bar), downloads), notice, mixer, error),
    h('div', { class: 'below' }, lyrics, h('div', { class: 'aside' }, actions, facts, demo, remarks)));
  return parts;
}

/** Show what is wrong in place of a song that cannot be shown. */
export function noSong(place, message) {
  place.replaceChildren(h('div', { class: 'empty' }, h('h1', { id: 'song-title' }, 'No song here'), h('p', { role: 'alert' }, message),
    h('a', { class: 'button primary', href: '#/library' }, 'Go to the library')));
}
