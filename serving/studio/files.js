// Keeps the reference's files in this browser (IndexedDB), so that a reload loses nothing. A browser without it keeps none.

const STORE = 'files';

function open() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open('yue-studio', 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE);
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

async function inStore(mode, act) {
  try {
    const database = await open();
    const request = act(database.transaction(STORE, mode).objectStore(STORE));
    return await new Promise((resolve, reject) => {
      request.onsuccess = () => resolve(request.result);
      request.onerror = () => reject(request.error);
    });
  } catch {
    return undefined;
  }
}

export const keep = (slot, file) => inStore('readwrite', (store) => store.put({ name: file.name, blob: file }, slot));
export const kept = (slot) => inStore('readonly', (store) => store.get(slot));
export const drop = (slot) => inStore('readwrite', (store) => store.delete(slot));
