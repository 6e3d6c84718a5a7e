// The tags to pick from. YuE follows about five best, one of each kind; others may be typed.

export const GROUPS = [
  {
    name: 'Genre',
    tags: [
      'folk', 'pop', 'rock', 'indie', 'jazz', 'blues', 'soul', 'r&b', 'country', 'hip-hop', 'rap', 'electronic', 'synthwave',
      'house', 'disco', 'funk', 'reggae', 'latin', 'bossa nova', 'metal', 'punk', 'gospel', 'classical', 'opera', 'lo-fi',
      'ambient', 'ballad', 'musical', 'k-pop', 'j-pop', 'mandopop',
    ],
  },
  {
    name: 'Instrument',
    tags: [
      'acoustic guitar', 'piano', 'electric guitar', 'strings', 'synthesizer', 'drums', 'bass', 'violin', 'cello', 'saxophone',
      'trumpet', 'flute', 'harmonica', 'organ', 'ukulele', 'banjo', 'harp', 'accordion', 'orchestra', 'beats', 'erhu', 'guzheng',
    ],
  },
  {
    name: 'Mood',
    tags: [
      'uplifting', 'calm', 'melancholic', 'romantic', 'hopeful', 'dreamy', 'energetic', 'dark', 'nostalgic', 'playful', 'happy',
      'sad', 'epic', 'angry', 'peaceful', 'mysterious', 'groovy', 'intimate', 'inspiring', 'party',
    ],
  },
  {
    name: 'Voice',
    tags: ['female', 'male', 'duet', 'choir', 'child', 'tenor', 'soprano', 'baritone', 'alto', 'rapper'],
  },
  {
    name: 'Timbre',
    tags: [
      'warm vocal', 'bright vocal', 'airy vocal', 'husky vocal', 'powerful vocal', 'soft vocal', 'clear vocal', 'deep vocal',
      'raspy vocal', 'smooth vocal', 'breathy vocal', 'full vocal',
    ],
  },
];

const KINDS = new Map(GROUPS.flatMap((group) => group.tags.map((tag) => [tag, group.name])));
const LONGEST = Math.max(...[...KINDS.keys()].map((tag) => tag.split(' ').length));

/** The kind of a tag, where it is one of these. */
export const kindOf = (tag) => KINDS.get(tag.toLowerCase());

/** The tags of a line like "folk acoustic guitar calm": known ones of several words stay together. */
export function split(line) {
  if (/[,;\n]/.test(line)) return unique(line.split(/[,;\n]+/));
  const words = line.trim().split(/\s+/).filter(Boolean);
  const tags = [];
  while (words.length) {
    let length = Math.min(LONGEST, words.length);
    while (length > 1 && !KINDS.has(words.slice(0, length).join(' ').toLowerCase())) length -= 1;
    tags.push(words.splice(0, length).join(' '));
  }
  return unique(tags);
}

function unique(tags) {
  return [...new Set(tags.map((tag) => tag.trim().replace(/\s+/g, ' ')).filter(Boolean))];
}
