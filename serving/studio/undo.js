// Brings the page back that an example, a new page or another song has replaced.

import { announce, byId, h } from './dom.js';

export class Undo {
  /** `restore` gets the page that was kept. */
  constructor(restore) {
    this.place = byId('undo');
    this.kept = null;
    this.place.append(h('span', {}, 'Your page was replaced.'), h('button', {
      type: 'button', class: 'quiet small', onclick: () => { const { kept } = this; this.forget(); restore(kept); },
    }, 'Undo'));
  }

  /** Keep a page that is about to be replaced. One that is still kept stays: nothing was written since. */
  keep(page) {
    this.kept ??= page;
    this.place.hidden = false;
    announce('Your page was replaced. Undo brings it back.');
  }

  forget() {
    this.kept = null;
    this.place.hidden = true;
    announce('');
  }
}
