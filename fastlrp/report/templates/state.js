// What is shown, and the same as the address after '#'.
const DEFAULTS = {
  sample: 0, layer: 'input', a: 0, b: 0, slot: 'a', compare: true, colours: 'blue-red', sign: 'symmetric',
  clip: 995, shared: false, overlay: 100, sort: 'score', find: '',
};
const CHOICES = {
  slot: SLOTS, colours: Object.keys(COLOURS), sign: ['symmetric', 'absolute'], sort: ['score', 'low', 'name', 'index'],
};
const RANGES = { clip: [800, 1000], overlay: [0, 100] };
const ALWAYS = ['sample', 'layer', 'a', 'b'];

const best = (s) => {
  const { order } = ranking(meta.samples[s]);
  return { a: order[0], b: order[Math.min(1, order.length - 1)] };
};

const whole = (text, low, high) => (/^\d+$/.test(text) && Number(text) >= low && Number(text) <= high ? Number(text) : null);

// A full state from text by name; what makes no sense is as if it were not there.
function stateFrom(entries) {
  const state = { ...DEFAULTS };
  state.sample = whole(entries.sample ?? '', 0, meta.samples.length - 1) ?? 0;
  const sample = meta.samples[state.sample];
  const last = sample.scores.length - 1;
  const start = best(state.sample);
  for (const slot of SLOTS) state[slot] = whole(entries[slot] ?? '', 0, last) ?? start[slot];
  for (const [name, choices] of Object.entries(CHOICES)) {
    if (choices.includes(entries[name])) state[name] = entries[name];
  }
  for (const [name, [low, high]] of Object.entries(RANGES)) state[name] = whole(entries[name] ?? '', low, high) ?? state[name];
  for (const name of ['compare', 'shared']) {
    if (['0', '1'].includes(entries[name])) state[name] = entries[name] === '1';
  }
  state.layer = layerOf(sample, entries.layer).name;
  state.find = entries.find ?? '';
  if (last === 0) state.compare = false;
  if (!state.compare) state.slot = 'a';
  return state;
}

const readHash = () => stateFrom(Object.fromEntries(new URLSearchParams(location.hash.slice(1))));

function hashOf(state) {
  const text = (value) => (typeof value === 'boolean' ? String(Number(value)) : String(value));
  const told = Object.keys(DEFAULTS).filter((name) => ALWAYS.includes(name) || state[name] !== DEFAULTS[name]);
  return `#${new URLSearchParams(told.map((name) => [name, text(state[name])]))}`;
}

// Browsers refuse an address that changes too often.
let writing = 0;
function writeHash(state) {
  clearTimeout(writing);
  writing = setTimeout(() => history.replaceState(null, '', hashOf(state)), 150);
}
