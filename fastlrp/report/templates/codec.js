// The way back from fastlrp/report/codec.py: base64, inflate, undo the prediction. Decoded maps are kept for a while.
const KEPT = 128;
const decoded = new Map();
const texts = new Map();

function textOf(id) {
  if (!texts.has(id)) texts.set(id, byId(id).textContent);
  return texts.get(id);
}

async function inflate(base64) {
  const packed = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream('deflate'));
  return new Int8Array(await new Response(stream).arrayBuffer());
}

// Each value is its difference, modulo 256, from the median of left, above and left + above - corner.
function addPrediction(q, height, width) {
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      const left = x ? q[i - 1] : 0;
      const above = y ? q[i - width] : 0;
      const corner = x && y ? q[i - width - 1] : 0;
      const low = Math.min(left, above);
      const high = Math.max(left, above);
      q[i] += Math.min(high, Math.max(low, left + above - corner)); // An Int8Array wraps.
    }
  }
}

// How often each |q| occurs.
function countsOf(q) {
  const counts = new Uint32Array(129);
  for (const value of q) counts[Math.abs(value)]++;
  return counts;
}

async function decode(s, l, k) {
  const layer = meta.samples[s].layers[l];
  const [height, width] = layer.stored;
  const q = await inflate(textOf(`maps-${s}-${l}`).slice(layer.places[k], layer.places[k + 1]));
  if (q.length !== height * width) throw new Error(`map ${k} of layer ${layer.name} has ${q.length} values`);
  if (layer.kinds[k] === 'm') addPrediction(q, height, width);
  return { q, height, width, counts: countsOf(q), scale: layer.scales[k], error: layer.errors[k] };
}

// A promise of the map of target k in layer l of sample s.
function mapOf(s, l, k) {
  const key = `${s}/${l}/${k}`;
  const found = decoded.get(key) ?? decode(s, l, k);
  decoded.delete(key);
  decoded.set(key, found); // Last in line to go.
  if (decoded.size > KEPT) decoded.delete(decoded.keys().next().value);
  return found;
}
