// Draws loudness over time on a canvas. Independent of where the peaks come from.

const BAR_PX = 3;
const GAP_PX = 2;
const LEAST = 0.015; // of the height, so that silence is seen

/** Draw peaks; what lies before `played` (0 … 1 of the width) is in the accent. `known` of the width has peaks. */
export function draw(canvas, peaks, { played = 0, known = 1, from = 0, to = 1 } = {}) {
  const { width, height } = canvas.getBoundingClientRect();
  if (!width || !height) return;
  const scale = window.devicePixelRatio || 1;
  const [wide, high] = [Math.round(width * scale), Math.round(height * scale)];
  if (canvas.width !== wide || canvas.height !== high) Object.assign(canvas, { width: wide, height: high });
  const context = canvas.getContext('2d');
  const style = getComputedStyle(canvas);
  const [accent, rest, faint] = ['--accent', '--wave', '--line'].map((name) => style.getPropertyValue(name).trim());
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, width, height);
  const bars = Math.floor((width + GAP_PX) / (BAR_PX + GAP_PX));
  const filled = Math.round(bars * known);
  const loudest = Math.max(0.25, ...peaks);
  for (let bar = 0; bar < bars; bar += 1) {
    const x = bar * (BAR_PX + GAP_PX);
    const place = (bar + 0.5) / bars;
    const level = bar < filled ? loudness(peaks, bar, filled) / loudest : 0;
    const tall = Math.max(BAR_PX, Math.max(LEAST, level) * height);
    context.fillStyle = bar >= filled || place < from || place > to ? faint : place <= played ? accent : rest;
    context.beginPath();
    context.roundRect(x, (height - tall) / 2, BAR_PX, tall, BAR_PX / 2);
    context.fill();
  }
}

/** The loudest of the peaks that one bar stands for. */
function loudness(peaks, bar, bars) {
  const first = Math.floor((bar * peaks.length) / bars);
  const last = Math.max(first + 1, Math.floor(((bar + 1) * peaks.length) / bars));
  let most = 0;
  for (let at = first; at < last && at < peaks.length; at += 1) most = Math.max(most, peaks[at]);
  return most;
}

/** Calls `act` whenever the drawing of an element is out of date: it has another size, or the theme changed. */
export function onStale(element, act) {
  const soon = () => requestAnimationFrame(act);
  const sizes = new ResizeObserver(soon);
  const themes = new MutationObserver(soon);
  const scheme = matchMedia('(prefers-color-scheme: dark)');
  sizes.observe(element);
  themes.observe(document.documentElement, { attributes: true, attributeFilter: ['data-theme'] });
  scheme.addEventListener('change', soon);
  return () => {
    sizes.disconnect();
    themes.disconnect();
    scheme.removeEventListener('change', soon);
  };
}
