// Plays one song at a time: its stream while it is generated, its files after that; the mix, or vocal and
// instrumental in step with it. Independent of what shows it.

import { address } from './api.js';

const DRIFT_SECONDS = 0.06; // between the tracks, before one is moved
const STEMS = ['vocal', 'instrumental'];

class Player extends EventTarget {
  song = null; // {id, title, url, streaming}
  stems = {}; // track → {audio, muted, solo}

  constructor() {
    super();
    this.audio = new Audio();
    for (const name of ['play', 'pause', 'ended', 'waiting', 'playing', 'error', 'timeupdate', 'seeked']) {
      this.audio.addEventListener(name, () => this.on(name));
    }
  }

  get time() {
    return this.wanted ?? this.audio.currentTime;
  }

  get playing() {
    return Boolean(this.song) && !this.audio.paused;
  }

  isAt(id) {
    return this.song?.id === id;
  }

  /** Take a song in place of the one before. `stems` maps tracks to their paths, where they can be heard apart. */
  load(song) {
    const again = this.isAt(song.id);
    if (again && this.song.url === song.url && !this.failed) return;
    const at = again && !this.audio.ended ? this.time : 0;
    const goesOn = again && this.playing;
    this.dropStems();
    this.song = song;
    this.next = null;
    this.failed = false;
    this.wanted = null;
    this.audio.src = address(song.url);
    if (at) this.seek(at);
    if (goesOn) this.play();
    this.tell();
  }

  /** Use a finished song's file in place of its stream, as soon as that interrupts nothing. */
  upgrade(song) {
    if (!this.isAt(song.id) || this.song.url === song.url) return;
    this.next = song;
    if (!this.playing || this.failed) this.load(song);
  }

  async play() {
    try {
      await this.audio.play();
    } catch { /* the browser wants a click first, or another song came */ }
    this.tell();
  }

  toggle() {
    if (this.playing) {
      this.audio.pause();
      return;
    }
    if (this.next) this.load(this.next);
    if (this.audio.ended) this.seek(0);
    this.play();
  }

  seek(seconds) {
    if (this.next) this.load(this.next);
    if (this.audio.readyState === 0) {
      this.wanted = seconds;
      this.audio.addEventListener('loadedmetadata', () => {
        if (this.wanted != null) this.audio.currentTime = this.wanted;
        this.wanted = null;
      }, { once: true });
    } else {
      this.audio.currentTime = seconds;
    }
    this.inStep();
    this.tell();
  }

  stop() {
    this.audio.pause();
    this.dropStems();
    this.audio.removeAttribute('src');
    this.song = null;
    this.next = null;
    this.tell();
  }

  /** Set what is heard of a stem. The mix is heard where both are, at full volume. */
  setStem(track, change) {
    this.openStems();
    Object.assign(this.stems[track], change);
    this.balance();
    this.inStep(true);
    this.tell();
  }

  stem(track) {
    return this.stems[track] ?? { muted: false, solo: false, volume: 1 };
  }

  openStems() {
    if (this.next) this.load(this.next);
    if (Object.keys(this.stems).length) return;
    for (const track of STEMS) {
      this.stems[track] = { audio: new Audio(address(this.song.stems[track])), muted: false, solo: false, volume: 1 };
    }
  }

  dropStems() {
    Object.values(this.stems).forEach(({ audio }) => { audio.pause(); audio.removeAttribute('src'); });
    this.stems = {};
    this.audio.muted = false;
  }

  /** True where a track is heard: a solo wins over every mute. */
  heard(track) {
    const solo = Object.values(this.stems).some((stem) => stem.solo);
    return solo ? this.stem(track).solo : !this.stem(track).muted;
  }

  balance() {
    const stems = Object.entries(this.stems);
    this.audio.muted = !stems.every(([track, stem]) => this.heard(track) && stem.volume === 1);
    for (const [track, stem] of stems) {
      stem.audio.muted = !this.audio.muted || !this.heard(track);
      stem.audio.volume = stem.volume;
    }
  }

  /** Keep the stems at the mix's place, and playing as it does. */
  inStep(exactly = false) {
    for (const { audio } of Object.values(this.stems)) {
      if (exactly || Math.abs(audio.currentTime - this.audio.currentTime) > DRIFT_SECONDS) audio.currentTime = this.audio.currentTime;
      if (this.playing && audio.paused) audio.play().catch(() => {});
      else if (!this.playing && !audio.paused) audio.pause();
    }
  }

  on(name) {
    if (name === 'error') {
      this.failed = true;
      if (this.next) this.load(this.next);
    }
    this.inStep(name === 'seeked');
    if (name === 'ended' && this.next) {
      const { next } = this;
      this.next = null;
      this.load({ ...next });
      this.audio.pause();
    }
    this.tell();
  }

  tell() {
    this.dispatchEvent(new Event('change'));
  }
}

export const player = new Player();

/** Calls `act` with every change, and with every frame while the song plays. Returns a function that ends it. */
export function onTime(act) {
  let frame = 0;
  const each = () => {
    cancelAnimationFrame(frame);
    act();
    if (player.playing) frame = requestAnimationFrame(each);
  };
  player.addEventListener('change', each);
  return () => {
    cancelAnimationFrame(frame);
    player.removeEventListener('change', each);
  };
}
