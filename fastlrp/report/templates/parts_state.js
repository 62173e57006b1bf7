// What is shown: a sample, one of its parts (-1: none), one of its targets; and the same as the address after '#'.
const START = { sample: 0, part: -1, target: 0, average: false, low: false, overlay: 70, find: '', pinned: false };
let view = { ...START };
let data = null; // The sample's numbers: q (K × G), places.

const wholeOr = (text, low, high, other) => (/^-?\d+$/.test(text ?? '') && Number(text) >= low && Number(text) <= high ? Number(text) : other);

function readHash() {
  const given = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  const sample = wholeOr(given.sample, 0, meta.samples.length - 1, 0);
  const { count, scores } = meta.samples[sample];
  const part = wholeOr(given.part, 0, count - 1, -1);
  return { ...START, sample, part, pinned: part >= 0, target: wholeOr(given.target, 0, scores.length - 1, 0), average: given.average === '1' };
}

let writing = 0;
function writeHash() {
  clearTimeout(writing);
  const told = { sample: view.sample, target: view.target, ...(view.pinned ? { part: view.part } : {}), ...(view.average ? { average: 1 } : {}) };
  writing = setTimeout(() => history.replaceState(null, '', `#${new URLSearchParams(told)}`), 150);
}

const kept = new Map();
async function numbersOf(s) {
  if (!kept.has(s)) {
    const sample = meta.samples[s];
    const bytes = new Uint8Array((await inflate(textOf(`parts-${s}`))).buffer); // All low bytes, then all high bytes.
    const q = Int16Array.from({ length: bytes.length / 2 }, (_, i) => bytes[i] | (bytes[i + bytes.length / 2] << 8));
    const places = sample.places ? new Int32Array((await inflate(textOf(`places-${s}`))).buffer) : null;
    if (q.length !== sample.count * sample.scores.length) throw new Error(`sample ${s} has ${q.length} numbers`);
    kept.set(s, { q, places });
  }
  return kept.get(s);
}

// Relevance of a part for a target; against the average target, if that is asked for.
function valueOf(k, g) {
  const sample = meta.samples[view.sample];
  return data.q[k * sample.count + g] * sample.scales[k] - (view.average ? sample.mean[g] : 0);
}

const errorOf = (k) => meta.samples[view.sample].scales[k] / 2;

// Where a part is: its text, or the pixels that it spans.
function partName(sample, g) {
  if (sample.tokens) return sample.tokens[g];
  const [width, own] = [sample.places[1], []];
  data.places.forEach((part, i) => { if (part === g) own.push(i); });
  const span = (values) => {
    const [from, to] = values.reduce(([low, high], v) => [Math.min(low, v), Math.max(high, v)], [Infinity, -Infinity]);
    return `${from * sample.step}–${(to + 1) * sample.step - 1}`;
  };
  return own.length ? `part ${g}: x ${span(own.map((i) => i % width))}, y ${span(own.map((i) => Math.floor(i / width)))}` : `part ${g}`;
}
