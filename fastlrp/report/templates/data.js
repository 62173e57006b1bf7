// What Python wrote into the page.
const byId = (id) => document.getElementById(id);
const meta = JSON.parse(byId('meta').textContent);
const SLOTS = ['a', 'b'];
const PANELS = ['a', 'b', 'd']; // d: A − B

const namesOf = (sample) => meta.lists[sample.targets];
const classOf = (sample, k) => sample.classes?.[k] ?? k;
const methodOf = (sample, k) => sample.methods?.[k] ?? '';
const isTrue = (sample, k) => sample.place.includes(k);
const layerOf = (sample, name) => sample.layers.find((layer) => layer.name === name) ?? sample.layers[0];
const isRow = (layer) => layer.shape[0] === 1;

// Positions of a sample's targets from the highest score down, and the rank of each in its method; made once.
const ranks = new Map();
function ranking(sample) {
  if (!ranks.has(sample)) {
    const order = sample.scores.map((_, k) => k).sort((i, j) => sample.scores[j] - sample.scores[i] || i - j);
    const rank = new Array(order.length);
    const counts = {};
    for (const k of order) rank[k] = counts[methodOf(sample, k)] = (counts[methodOf(sample, k)] ?? 0) + 1;
    ranks.set(sample, { order, rank, counts });
  }
  return ranks.get(sample);
}

const percent = (share) => (share > 0 && share < 0.0005 ? '< 0.05 %' : `${Number((100 * share).toPrecision(3))} %`);

// Four digits, a true minus sign, exponents only where they save zeros.
function number(value, sign = true) {
  if (value === null || value === undefined) return '–';
  if (value === 0) return '0';
  const size = Math.abs(value);
  const text = size >= 1e5 || size < 1e-3
    ? size.toExponential(3).replace(/\.?0+e/, 'e').replace('e+', 'e').replace('e-', 'e−')
    : String(Number(size.toPrecision(4)));
  return (value < 0 ? '−' : sign ? '+' : '') + text;
}
