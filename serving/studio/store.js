// What this browser keeps: the draft, the songs that it asked for, the theme. A browser that keeps nothing still works.

const LONGEST = 300; // songs that are remembered

function read(name, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(`yue.${name}`)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

function write(name, value) {
  try {
    localStorage.setItem(`yue.${name}`, JSON.stringify(value));
  } catch { /* it is full or closed: the page goes on without */ }
}

export const draft = {
  read: () => read('draft', {}),
  write: (value) => write('draft', value),
};

export const theme = {
  read: () => read('theme', 'auto'),
  write: (value) => write('theme', value),
};

/** The songs of this browser, the newest first: {id, group, at}. Takes of one request share a group. */
export const songs = {
  all: () => read('songs', []),
  add(ids, group) {
    const at = new Date().toISOString();
    write('songs', [...ids.map((id) => ({ id, group, at })), ...songs.all()].slice(0, LONGEST));
  },
  remove: (id) => write('songs', songs.all().filter((song) => song.id !== id)),
  takes(id) {
    const song = songs.all().find((each) => each.id === id);
    return song?.group ? songs.all().filter((each) => each.group === song.group).map((each) => each.id) : [id];
  },
};

/** A request that was sent but not answered yet: after a reload it is sent again, and makes no second song. */
export const pending = {
  read: () => read('pending', null),
  write: (value) => write('pending', value),
};
