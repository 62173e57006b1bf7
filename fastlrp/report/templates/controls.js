// Menus, sliders and boxes: what they show, and what they change. `update` is in app.js.
function option(value, text) {
  const made = document.createElement('option');
  made.value = value;
  made.textContent = text;
  return made;
}

const sizeText = (layer) => (isRow(layer) ? `${layer.shape[1]} neurons` : `${layer.shape[0]}×${layer.shape[1]}`);

const MENUS = ['layer', 'colours', 'sign', 'sort', 'overview', 'method'];
const BOXES = ['compare', 'shared', 'photo', 'difference'];

// Which panels stand beside each other, and how large.
function showArrangement(view, sample) {
  byId('panels').classList.toggle('single', !view.compare);
  byId('panel-b').hidden = !view.compare;
  byId('panel-d').hidden = !view.compare || !view.difference;
  byId('panel-photo').hidden = !view.photo || !sample.image;
  byId('panels').dataset.shown = [...byId('panels').children].filter((panel) => !panel.hidden).map((panel) => panel.id.at(-1)).join('');
  byId('panels').hidden = view.overview !== 'none';
  byId('overview-tiles').hidden = view.overview === 'none';
  document.body.classList.toggle('large', view.large);
  byId('large').setAttribute('aria-pressed', String(view.large));
}

let shownLayers = null;
function showControls(view) {
  const sample = meta.samples[view.sample];
  if (shownLayers !== sample) {
    byId('layer').replaceChildren(...sample.layers.map((layer) => option(layer.name, `${layer.name} (${sizeText(layer)})`)));
    shownLayers = sample;
  }
  byId('method').replaceChildren(...['', ...new Set(sample.methods ?? [])].map((name) => option(name, name || 'All')));
  byId('method-field').hidden = !sample.methods;
  for (const name of [...MENUS, 'sample', 'clip', 'overlay']) byId(name).value = view[name];
  if (byId('search').value !== view.find) byId('search').value = view.find;
  for (const name of BOXES) byId(name).checked = view[name];
  for (const radio of document.getElementsByName('slot')) {
    radio.checked = radio.value === view.slot;
    radio.disabled = radio.value === 'b' && !view.compare;
  }
  const laid = sample.image && liesOnInput(layerOf(sample, view.layer), sample);
  byId('overlay').disabled = !laid;
  byId('overlay-text').textContent = laid ? `${view.overlay} %` : sample.image ? 'not for this layer' : 'no image';
  byId('clip-text').textContent = view.clip === 1000 ? 'the largest' : `quantile ${view.clip / 1000}`;
  byId('compare').disabled = sample.scores.length === 1;
  byId('shared').disabled = !view.compare && view.overview === 'none';
  byId('swap').disabled = byId('difference').disabled = !view.compare;
  byId('photo').disabled = !sample.image;
  showArrangement(view, sample);
}

function fillMenus() {
  byId('sample').replaceChildren(...meta.samples.map((sample, i) => option(i, sample.name)));
  byId('colours').replaceChildren(...Object.entries(COLOURS).map(([name, { title }]) => option(name, title)));
  const count = (n, what) => `${n} ${what}${n === 1 ? '' : 's'}`;
  const targets = Math.max(...meta.samples.map((sample) => sample.scores.length));
  byId('about').textContent = [
    meta.model, meta.composite, count(meta.samples.length, 'sample'), count(targets, 'target'), `relevance in units of the ${meta.unit}`,
  ].filter(Boolean).join(' · ');
  byId(meta.reduced ? 'reduced' : 'storage').textContent = meta.storage;
  byId('reduced').hidden = !meta.reduced;
}

// The place of another sample's target in a sample's list: of the same class and name; -1 if it has none.
function placeIn(after, before, k) {
  const name = namesOf(before)[k];
  return namesOf(after).findIndex((other, i) => other === name && classOf(after, i) === classOf(before, k)
    && methodOf(after, i) === methodOf(before, k));
}

// Another sample: the same targets where it has them, else its best two; the same layer if it has one.
function withSample(view, s) {
  const [before, after] = [meta.samples[view.sample], meta.samples[s]];
  const targets = best(s);
  for (const slot of SLOTS) {
    const place = placeIn(after, before, view[slot]);
    if (place >= 0) targets[slot] = place;
  }
  return { sample: s, ...targets, layer: layerOf(after, view.layer).name, compare: view.compare && after.scores.length > 1 };
}

function listenToControls() {
  byId('sample').addEventListener('change', (event) => update(withSample(view, Number(event.target.value))));
  for (const name of MENUS) {
    byId(name).addEventListener('change', (event) => update({ [name]: event.target.value }));
  }
  for (const name of ['clip', 'overlay']) {
    byId(name).addEventListener('input', (event) => update({ [name]: Number(event.target.value) }));
  }
  for (const name of BOXES) {
    byId(name).addEventListener('change', (event) => update({ [name]: event.target.checked }));
  }
  for (const radio of document.getElementsByName('slot')) {
    radio.addEventListener('change', () => update({ slot: radio.value }));
  }
  byId('search').addEventListener('input', (event) => update({ find: event.target.value }));
  byId('swap').addEventListener('click', () => update({ a: view.b, b: view.a }));
  byId('large').addEventListener('click', () => update({ large: !view.large }));
  for (const kind of Object.keys(SAVED)) byId(`save-${kind}`).addEventListener('click', () => save(kind).catch(fail));
  byId('help-open').addEventListener('click', () => byId('help').showModal());
  byId('targets').addEventListener('scroll', drawRows, { passive: true });
  byId('targets').addEventListener('click', (event) => {
    const row = event.target.closest('[data-target]');
    if (row) choose(Number(row.dataset.target), event.shiftKey);
  });
  for (const slot of SLOTS) {
    byId(`panel-${slot}`).querySelector('header').addEventListener('click', () => { if (view.compare) update({ slot }); });
  }
}
