// The line for a terminal that makes a song again.

import { address } from './api.js';
import { session } from './session.js';

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** The line for a request as the server echoes it. */
export function curlLine({ reference, ...request }) {
  const fields = Object.fromEntries(Object.entries(request).filter(([name, value]) => value != null && name !== 'deadline_seconds'));
  fields.tracks = [fields.tracks?.[0] ?? 'mix']; // the answer is the bytes of one
  const type = { mp3: 'audio/mpeg', ogg: 'audio/ogg', flac: 'audio/flac', wav: 'audio/wav' }[request.format];
  const key = session.keyRequired ? ' -H "Authorization: Bearer $YUE_API_KEY"' : '';
  const line = `curl -f${key} -H 'Content-Type: application/json' -H 'Accept: ${type}' -o song.${request.format} `
    + `${quoted(address('predict'))} -d ${quoted(JSON.stringify({ instances: [fields] }))}`;
  return reference ? `# add "reference": its audio is not kept\n${line}` : line;
}

/** Put a text on the clipboard: true if the browser did. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch { // a page without https has no clipboard but this
    const area = document.createElement('textarea');
    area.value = text;
    area.className = 'sr';
    document.body.append(area);
    area.select();
    const done = document.execCommand('copy');
    area.remove();
    return done;
  }
}
