// Many small maps at once: all targets of the list, all layers of one target, or one target in all samples.
const MOST_TILES = 400;
let watcher = null;

// What each tile shows: sample, layer, target; what it is called; and the view that a click on it leads to.
function tilesOf(view) {
  const sample = meta.samples[view.sample];
  const l = sample.layers.findIndex((layer) => layer.name === view.layer);
  const k = view[view.slot];
  const title = (s, i) => [namesOf(meta.samples[s])[i], methodOf(meta.samples[s], i)].filter(Boolean).join(' · ');
  if (view.overview === 'targets') {
    return list.found.map((i) => ({ s: view.sample, l, k: i, name: title(view.sample, i), to: { [view.slot]: i } }));
  }
  if (view.overview === 'layers') {
    return sample.layers.map((layer, i) => ({ s: view.sample, l: i, k, name: layer.name, to: { layer: layer.name } }));
  }
  return meta.samples.map((other, s) => {
    const place = placeIn(other, sample, k);
    const at = place < 0 ? best(s).a : place;
    const layer = other.layers.findIndex((one) => one.name === view.layer);
    return { s, l: Math.max(0, layer), k: at, name: `${other.name}: ${title(s, at)}`, to: { ...withSample(view, s), [view.slot]: at } };
  });
}

function tileOf(tile) {
  const made = element('button', 'tile');
  made.type = 'button';
  const sample = meta.samples[tile.s];
  const layer = sample.layers[tile.l];
  const frame = element('span', 'small-frame');
  const laid = liesOnInput(layer, sample);
  frame.style.setProperty('--ratio', isRow(layer) ? 2 : laid ? ratioOf(sample.height, sample.width) : ratioOf(...layer.shape));
  frame.append(document.createElement('canvas'));
  const name = element('span', 'name', tile.name);
  name.dir = 'auto';
  const score = `${number(sample.scores[tile.k])}${sample.probabilities ? `, ${percent(sample.probabilities[tile.k])}` : ''}`;
  made.append(frame, name, element('span', 'score', score));
  made.title = tile.name;
  made.classList.toggle('chosen', tile.s === view.sample && tile.k === view[view.slot] && layer.name === view.layer);
  made.addEventListener('click', () => update({ ...tile.to, overview: 'none' }));
  return made;
}

async function drawTile(tile, made, limit, look) {
  const map = await mapOf(tile.s, tile.l, tile.k);
  const draw = isRow(meta.samples[tile.s].layers[tile.l]) ? drawBars : drawMap;
  draw(made.querySelector('canvas'), map, limit ?? limitOf(map, look.clip / 1000), { ...look, overlay: 1 });
}

async function showOverview() {
  const mine = ++turn;
  const now = view;
  const all = tilesOf(now);
  const tiles = all.slice(0, MOST_TILES);
  const made = tiles.map(tileOf);
  const head = element('p', 'count', `${all.length > tiles.length ? `The first ${tiles.length} of ${all.length}` : all.length} maps. ` +
    `${now.shared ? 'One scale for all' : 'Each on its own scale'}. A click looks at one.`);
  watcher?.disconnect();
  byId('overview-tiles').replaceChildren(head, ...made);
  let limit = null;
  if (now.shared) {
    const limits = await Promise.all(tiles.map(async (tile) => limitOf(await mapOf(tile.s, tile.l, tile.k), now.clip / 1000)));
    limit = Math.max(...limits);
  }
  if (mine !== turn) return;
  watcher = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      watcher.unobserve(target);
      drawTile(tiles[made.indexOf(target)], target, limit, now).catch(fail);
    }
  }, { rootMargin: '200px' });
  made.forEach((one) => watcher.observe(one));
  byId('problem').hidden = true;
  document.body.dataset.drawn = mine;
}
