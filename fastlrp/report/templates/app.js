// Data flows one way: an event changes `view`, and everything is shown anew from it.
let view = readHash();
let turn = 0;

function fail(error) {
  byId('problem').textContent = `This view could not be drawn: ${error.message ?? error}`;
  byId('problem').classList.add('problem');
  byId('problem').hidden = false;
  throw error;
}

async function showMaps() {
  const mine = ++turn;
  const now = view;
  const l = meta.samples[now.sample].layers.findIndex((layer) => layer.name === now.layer);
  const slots = now.compare ? [...SLOTS] : ['a'];
  const maps = await Promise.all(slots.map((slot) => mapOf(now.sample, l, now[slot])));
  if (mine !== turn) return; // Something newer is on its way.
  if (now.compare && now.difference) {
    slots.push('d');
    maps.push(differenceOf(...maps));
  }
  const limits = limitsOf(maps, now);
  showPhoto(now);
  slots.forEach((slot, i) => showMap(slot, maps[i], limits[i], now));
  byId('problem').hidden = true;
  document.body.dataset.drawn = mine;
}

function say() {
  const sample = meta.samples[view.sample];
  const k = view[view.slot];
  byId('said').textContent = `${view.slot.toUpperCase()}: ${namesOf(sample)[k]}, score ${number(sample.scores[k])}`;
}

function show() {
  showControls(view);
  showList(view);
  showLedger(view);
  showThumbs(view);
  (view.overview === 'none' ? showMaps() : showOverview()).catch(fail);
}

function update(changes) {
  const before = view;
  view = { ...view, ...changes };
  if (!view.compare) view.slot = 'a';
  show();
  if (['sample', 'slot', 'a', 'b'].some((name) => before[name] !== view[name])) say();
  writeHash(view);
}

function start() {
  if (typeof DecompressionStream === 'undefined') {
    fail(new Error('this browser has no DecompressionStream. Chrome 80, Firefox 113, Safari 16.4 and later have it.'));
  }
  fillMenus();
  listenToControls();
  listenToKeys();
  window.addEventListener('hashchange', () => { view = readHash(); show(); });
  new ResizeObserver(() => showList(view)).observe(list.box);
  new ResizeObserver(() => { if (view.overview === 'none') showMaps().catch(fail); }).observe(byId('panels'));
  listenToThumbs();
  show();
}

start();
