// Numbers and states in the words of the page.

/** 75.4 → "1:15". */
export function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds || 0));
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, '0')}`;
}

/** 75.4 → "1 min 15 s". */
export function span(seconds) {
  const whole = Math.max(1, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return whole % 60 && whole < 600 ? `${Math.floor(whole / 60)} min ${whole % 60} s` : `${Math.round(whole / 60)} min`;
  return `${Math.floor(whole / 3600)} h ${Math.round((whole % 3600) / 60)} min`;
}

/** 15400000000 → "15.4 GB". */
export function size(bytes) {
  const units = ['bytes', 'kB', 'MB', 'GB', 'TB'];
  let unit = 0;
  let value = bytes;
  while (value >= 1000 && unit < units.length - 1) { value /= 1000; unit += 1; }
  return `${unit ? value.toFixed(value < 100 ? 1 : 0) : value} ${units[unit]}`;
}

/** When something was, for people. */
export function when(iso) {
  const at = new Date(iso);
  const seconds = (Date.now() - at) / 1000;
  if (seconds < 60) return 'just now';
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h ago`;
  return at.toLocaleDateString(undefined, { day: 'numeric', month: 'short', year: 'numeric' });
}

/** "1 section", "2 sections". */
export const count = (number, noun) => `${number} ${noun}${number === 1 ? '' : 's'}`;

const TAG = /^\s*[[【［].*?[\]】］]\s*/;

/** A song's name: its first line of words. */
export function title(lyrics) {
  const line = (lyrics || '').split('\n').map((each) => each.replace(TAG, '').trim()).find(Boolean);
  return line ? line.replace(/[,;.…]+$/, '') : 'Untitled song';
}

export const FINISHED = ['succeeded', 'failed', 'cancelled', 'interrupted'];
const ENDED = { failed: 'It failed', cancelled: 'Cancelled', interrupted: 'Interrupted' };
const STAGES = {
  prompt: 'Reading the words',
  stage1: 'Composing',
  stage2: 'Filling in the sound',
  decode: 'Rendering the audio',
  encode: 'Writing the file',
};

/** What a job is doing, in one line; `tags` are the names of its sections. */
export function doing(job, tags = []) {
  if (job.status === 'succeeded') return 'Done';
  if (ENDED[job.status]) return ENDED[job.status];
  if (job.cancel_requested) return 'Cancelling';
  if (job.status === 'queued') {
    if (!job.position) return 'Waiting for its turn';
    return job.position === 1 ? 'Next in the queue' : `Number ${job.position} in the queue`;
  }
  const progress = job.progress;
  if (!progress) return 'Starting';
  const stage = STAGES[progress.stage] ?? progress.stage;
  if (progress.stage !== 'stage1' || !progress.section) return stage;
  const tag = tags[progress.section - 1];
  return `${stage} ${tag ? `the ${tag}` : ''}`.trim() + ` · section ${progress.section} of ${progress.sections}`;
}

/** The time that a job still takes, where the server knows it. */
export function left(job) {
  const seconds = job.status === 'queued' ? job.expected_seconds : job.progress?.seconds_left;
  return seconds == null || FINISHED.includes(job.status) ? '' : `about ${span(seconds)} left`;
}
