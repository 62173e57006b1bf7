// The panels A and B: facts, map, colour scale, and the value at a place.
const panels = Object.fromEntries(PANELS.map((slot) => [slot, { map: null, layer: null }]));
let probe = null; // {x, y, pinned}: the place that is read, as shares of the width and the height; the same in A and B.

// Maps that do not have the shape of the input are not laid on it.
function liesOnInput(layer, sample) {
  const [height, width] = layer.shape;
  const off = Math.abs(Math.log((height * sample.width) / (width * sample.height)));
  return !isRow(layer) && off <= Math.max(0.02, 1.01 / Math.min(height, width));
}

function showFacts(slot, view) {
  const sample = meta.samples[view.sample];
  const layer = layerOf(sample, view.layer);
  if (slot === 'd') {
    byId('score-d').textContent = number(sample.scores[view.a] - sample.scores[view.b]);
    byId('total-d').textContent = number(layer.totals[view.a] - layer.totals[view.b]);
    return;
  }
  const k = view[slot];
  const name = namesOf(sample)[k];
  byId(`name-${slot}`).textContent = name;
  byId(`name-${slot}`).title = name;
  byId(`true-${slot}`).hidden = !isTrue(sample, k);
  byId(`score-${slot}`).textContent = number(sample.scores[k]);
  const { rank, counts } = ranking(sample);
  byId(`rank-${slot}`).textContent = `${rank[k]} of ${counts[methodOf(sample, k)]}`;
  byId(`chance-${slot}`).parentElement.hidden = !sample.probabilities;
  byId(`chance-name-${slot}`).textContent = sample.probability[0].toUpperCase() + sample.probability.slice(1);
  byId(`chance-${slot}`).textContent = sample.probabilities ? percent(sample.probabilities[k]) : '';
  byId(`method-${slot}`).parentElement.hidden = !sample.methods;
  byId(`method-${slot}`).textContent = methodOf(sample, k);
  byId(`total-${slot}`).textContent = number(layer.totals[k]);
  byId(`panel-${slot}`).classList.toggle('active', view.compare && view.slot === slot);
}

const ratioOf = (height, width) => Math.min(8, Math.max(0.125, width / height));

function showImage(image, view) {
  if (image.dataset.sample === String(view.sample)) return;
  image.src = `data:image/png;base64,${textOf(`image-${view.sample}`)}`;
  image.dataset.sample = view.sample;
}

// The input as the model saw it, beside the maps.
function showPhoto(view) {
  const sample = meta.samples[view.sample];
  byId('name-photo').textContent = sample.name;
  byId('name-photo').title = sample.name;
  byId('truth').textContent = sample.truth;
  byId('image-note').textContent = sample.note && `The image is ${sample.note}.`;
  byId('truth').parentElement.hidden = !sample.truth;
  if (byId('panel-photo').hidden) return;
  byId('frame-photo').style.setProperty('--ratio', ratioOf(sample.height, sample.width));
  showImage(byId('image-photo'), view);
}

function showFrame(slot, view) {
  const sample = meta.samples[view.sample];
  const layer = layerOf(sample, view.layer);
  const frame = byId(`frame-${slot}`);
  const laid = liesOnInput(layer, sample);
  const [height, width] = laid ? [sample.height, sample.width] : layer.shape;
  frame.style.setProperty('--ratio', isRow(layer) ? 2 : ratioOf(height, width));
  frame.classList.toggle('bars', isRow(layer));
  frame.dataset.target = view[slot] ?? '';
  frame.dataset.layer = layer.name;
  const what = slot === 'd' ? 'Difference A − B' : `Map ${slot.toUpperCase()}: ${namesOf(sample)[view[slot]]}`;
  frame.setAttribute('aria-label', `${what}, layer ${layer.name}`);
  const image = byId(`image-${slot}`);
  image.hidden = !sample.image || !laid;
  if (sample.image) showImage(image, view);
  // The last cells of a coarse map may reach beyond the edge.
  const canvas = byId(`map-${slot}`);
  canvas.style.width = isRow(layer) ? '' : `${(100 * layer.stored[1] * layer.factor) / layer.shape[1]}%`;
  canvas.style.height = isRow(layer) ? '' : `${(100 * layer.stored[0] * layer.factor) / layer.shape[0]}%`;
  return !image.hidden;
}

function showScale(slot, limit, view) {
  drawScale(byId(`bar-${slot}`), view);
  const absolute = view.sign === 'absolute';
  const more = view.clip < 1000 && limit ? ' and more' : '';
  byId(`low-${slot}`).textContent = absolute ? '0' : number(-limit);
  byId(`mid-${slot}`).textContent = absolute ? '' : '0';
  byId(`high-${slot}`).textContent = number(limit, !absolute) + more;
}

function showMap(slot, map, limit, view) {
  const sample = meta.samples[view.sample];
  const layer = layerOf(sample, view.layer);
  showFacts(slot, view);
  const overImage = showFrame(slot, view);
  panels[slot] = { map, layer };
  const canvas = byId(`map-${slot}`);
  const look = { colours: view.colours, sign: view.sign, overlay: overImage ? view.overlay / 100 : 1 };
  (isRow(layer) ? drawBars : drawMap)(canvas, map, limit, look);
  showScale(slot, limit, view);
  showValue(slot);
}

// The cell at the probe, or null.
function cellOf(slot) {
  const { map, layer } = panels[slot];
  if (!probe || !map) return null;
  if (isRow(layer)) {
    const columns = Math.min(map.width, byId(`map-${slot}`).width);
    return { ...neuronsAt(map, Math.min(columns - 1, Math.floor(probe.x * columns)), columns), row: 0 };
  }
  const at = (share, size, cells) => Math.min(cells - 1, Math.floor((share * size) / layer.factor));
  return { strongest: at(probe.x, layer.shape[1], map.width), row: at(probe.y, layer.shape[0], map.height) };
}

function showValue(slot) {
  const { map, layer } = panels[slot];
  const cell = cellOf(slot);
  const cross = byId(`cross-${slot}`);
  cross.hidden = !cell;
  cross.classList.toggle('pinned', Boolean(probe?.pinned));
  // The photograph is marked where map A lies on it.
  if (slot === 'a') {
    byId('cross-photo').hidden = !cell || !liesOnInput(layer, meta.samples[view.sample]);
    byId('cross-photo').classList.toggle('pinned', Boolean(probe?.pinned));
  }
  const out = byId(`value-${slot}`);
  if (!cell) {
    out.textContent = 'Point at the map to read a value.';
    return;
  }
  const R = map.q[cell.row * map.width + cell.strongest] * map.scale;
  const span = (cell, size) => {
    const [from, to] = [cell * layer.factor, Math.min(size, (cell + 1) * layer.factor) - 1];
    return from === to ? `${from}` : `${from}–${to}`;
  };
  let place = `x ${span(cell.strongest, layer.shape[1])}, y ${span(cell.row, layer.shape[0])}`;
  if (isRow(layer)) {
    place = `neuron ${span(cell.strongest, layer.shape[1])}`;
    if (cell.to - cell.from > 1) place += ` (strongest of ${cell.to - cell.from})`;
  }
  out.textContent = `${place}: R = ${number(R)} ± ${number(map.error, false)}`;
  const box = isRow(layer)
    ? [cell.from / map.width, 0, (cell.to - cell.from) / map.width, 1]
    : [(cell.strongest * layer.factor) / layer.shape[1], (cell.row * layer.factor) / layer.shape[0],
      layer.factor / layer.shape[1], layer.factor / layer.shape[0]];
  const crosses = slot === 'a' ? [cross, byId('cross-photo')] : [cross];
  for (const one of crosses) ['left', 'top', 'width', 'height'].forEach((side, i) => { one.style[side] = `${100 * box[i]}%`; });
}

function setProbe(next) {
  probe = next;
  PANELS.forEach(showValue);
}

function probeFrom(event, frame) {
  const box = frame.getBoundingClientRect();
  const share = (at, from, size) => Math.min(0.999999, Math.max(0, (at - from) / size));
  return { x: share(event.clientX, box.left, box.width), y: share(event.clientY, box.top, box.height), pinned: false };
}

// With the keyboard: one cell further.
function moveProbe(slot, across, down) {
  const { map, layer } = panels[slot];
  const step = [layer.shape[1], layer.shape[0]].map((size) => layer.factor / size);
  if (isRow(layer)) step[0] = 1 / Math.min(map.width, byId(`map-${slot}`).width);
  const from = probe ?? { x: 0.5 - across * step[0], y: 0.5 - down * step[1] };
  const to = (at, by) => Math.min(0.999999, Math.max(0, at + by));
  setProbe({ x: to(from.x, across * step[0]), y: to(from.y, down * step[1]), pinned: false });
}

for (const slot of [...PANELS, 'photo']) {
  const frame = byId(`frame-${slot}`);
  frame.addEventListener('pointermove', (event) => { if (!probe?.pinned) setProbe(probeFrom(event, frame)); });
  frame.addEventListener('pointerleave', () => { if (!probe?.pinned) setProbe(null); });
  frame.addEventListener('click', (event) => {
    setProbe({ ...probeFrom(event, frame), pinned: !probe?.pinned });
  });
  frame.addEventListener('keydown', (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (step) moveProbe(slot === 'photo' ? 'a' : slot, ...step);
    else if (event.key === 'Enter' && probe) setProbe({ ...probe, pinned: !probe.pinned });
    else if (event.key === 'Escape') setProbe(null);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
}
