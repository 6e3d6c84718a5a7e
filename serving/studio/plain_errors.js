// The commonest mistakes in the page's own words. Every other error keeps the server's.

import { byId } from './dom.js';

const LENGTH = '“Length of a section”';

/** What is missing for a song, in the form of the server's errors. */
export function missing({ lyrics, genres }) {
  return [
    !lyrics.trim() && { field: 'lyrics', detail: 'Write some words first.' },
    !genres && { field: 'genres', detail: 'Pick at least one tag.' },
  ].filter(Boolean);
}

/** The numbers that are outside their limits, in the same form. */
export function outside(names) {
  return names.map(byId).filter(isOutside).map((input) => ({ field: input.id, detail: limits(input) }));
}

function isOutside({ validity, step }) {
  return validity.badInput || validity.rangeUnderflow || validity.rangeOverflow || (!step && validity.stepMismatch);
}

function limits(input) {
  const name = input.labels[0].firstChild.textContent.trim();
  return `${name}: ${input.step ? 'a number' : 'a whole number'} from ${input.min} to ${input.max}.`;
}

/** An error of the server in the page's words, where it has some. */
export function inWords({ field, detail }) {
  const input = byId(String(field));
  return input?.validity && isOutside(input) ? limits(input) : inPageWords(detail);
}

/** A note of the server with the names that the page uses. */
export const inPageWords = (detail) => detail.replaceAll(/\bmax_new_tokens\b/g, LENGTH);
