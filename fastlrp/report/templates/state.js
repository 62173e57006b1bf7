// What is shown, and the same as the address after '#'.
const DEFAULTS = {
  sample: 0, layer: 'input', a: 0, b: 0, slot: 'a', compare: true, colours: 'blue-red', sign: 'symmetric',
  clip: 995, shared: false, overlay: 100, sort: 'score', find: '', photo: true, difference: false, large: false, overview: 'none',
  method: '',
};
const CHOICES = {
  slot: SLOTS, colours: Object.keys(COLOURS), sign: ['symmetric', 'absolute'], sort: ['score', 'low', 'name', 'index'],
  overview: ['none', 'targets', 'layers', 'samples'],
};
const RANGES = { clip: [800, 1000], overlay: [0, 100] };
const SWITCHES = ['compare', 'shared', 'photo', 'difference', 'large'];
const ALWAYS = ['sample', 'layer', 'a', 'b'];

// The same class in the next of the ways in which it was explained; null if there is one way only.
function otherWay(sample, k) {
  const ways = [...new Set(sample.methods ?? [])];
  const wanted = ways[(ways.indexOf(methodOf(sample, k)) + 1) % ways.length];
  const { order } = ranking(sample);
  return order.find((i) => i !== k && methodOf(sample, i) === wanted && classOf(sample, i) === classOf(sample, k)) ?? null;
}

// What is compared at first: the best target in two ways, or else the best two.
const best = (s) => {
  const sample = meta.samples[s];
  const { order } = ranking(sample);
  return { a: order[0], b: otherWay(sample, order[0]) ?? order[Math.min(1, order.length - 1)] };
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
  for (const name of SWITCHES) {
    if (['0', '1'].includes(entries[name])) state[name] = entries[name] === '1';
  }
  state.layer = layerOf(sample, entries.layer).name;
  state.find = entries.find ?? '';
  state.method = sample.methods?.includes(entries.method) ? entries.method : '';
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
