// The keyboard. Fields keep the keys that they need themselves.
const TYPES = 'input[type=search], select';
const MOVES = 'input, select';

function choose(k, other = false) {
  const slot = other && view.compare ? SLOTS.find((name) => name !== view.slot) : view.slot;
  if (k !== undefined) update({ [slot]: k });
}

function move(steps) {
  choose(neighbour(steps));
}

function turnLayer(steps) {
  const layers = meta.samples[view.sample].layers;
  const at = layers.findIndex((layer) => layer.name === view.layer) + steps;
  if (layers[at]) update({ layer: layers[at].name });
}

function turnSample(steps) {
  if (meta.samples[view.sample + steps]) update(withSample(view, view.sample + steps));
}

// B becomes A's class in the next way in which it was explained.
function turnMethod() {
  const other = otherWay(meta.samples[view.sample], view.compare ? view.b : view.a);
  if (other !== null) update(view.compare ? { b: other } : { a: other });
}

const LETTERS = {
  '/': () => { byId('search').focus(); byId('search').select(); },
  '[': () => turnLayer(-1),
  ']': () => turnLayer(1),
  '?': () => byId('help').showModal(),
  s: () => { if (view.compare) update({ a: view.b, b: view.a }); },
  c: () => update({ compare: !view.compare && meta.samples[view.sample].scores.length > 1 }),
  d: () => { if (view.compare) update({ difference: !view.difference }); },
  f: () => update({ large: !view.large }),
  m: () => turnMethod(),
  o: () => update({ overview: view.overview === 'none' ? 'targets' : 'none' }),
  p: () => update({ photo: !view.photo }),
  a: () => update({ slot: 'a' }),
  b: () => { if (view.compare) update({ slot: 'b' }); },
};
const ARROWS = {
  ArrowUp: () => move(-1), ArrowDown: () => move(1), ArrowLeft: () => turnSample(-1), ArrowRight: () => turnSample(1),
};
const page = () => Math.max(1, Math.floor(list.box.clientHeight / ROW) - 1);
const LIST = {
  Home: () => choose(list.found[0]), End: () => choose(list.found.at(-1)),
  PageUp: () => move(-page()), PageDown: () => move(page()),
};
const SEARCH = {
  ArrowUp: () => move(-1), ArrowDown: () => move(1), Enter: () => choose(list.found[0]),
  Escape: () => { update({ find: '' }); byId('search').blur(); },
};

function actionOf(event) {
  const at = event.target;
  // On some keyboards the brackets and the slash are typed with Alt or AltGr, which is Control and Alt.
  const typed = event.altKey && '[]/?'.includes(event.key);
  if (event.metaKey || ((event.ctrlKey || event.altKey) && !typed) || byId('help').open) return null;
  if (at === byId('search')) return SEARCH[event.key];
  if (at === list.box && LIST[event.key]) return LIST[event.key];
  if (ARROWS[event.key]) return at.closest?.(MOVES) || at.id === 'ledger-scroll' || at.classList?.contains('tile') ? null : ARROWS[event.key];
  if (event.key === 'Escape') return () => (view.large || view.overview !== 'none' ? update({ large: false, overview: 'none' }) : setProbe(null));
  return at.closest?.(TYPES) ? null : LETTERS[event.key];
}

function listenToKeys() {
  document.addEventListener('keydown', (event) => {
    const action = actionOf(event);
    if (!action) return;
    event.preventDefault();
    action();
  });
}
