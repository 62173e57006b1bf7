// An event changes `view`, and everything is shown anew from it.
let drawn = 0;

function fail(error) {
  byId('problem').textContent = `This view could not be drawn: ${error.message ?? error}`;
  byId('problem').classList.add('problem');
  byId('problem').hidden = false;
  throw error;
}

async function show() {
  const now = view;
  const found = await numbersOf(now.sample);
  if (now !== view) return;
  data = found;
  byId('sample').value = view.sample;
  byId('average').checked = view.average;
  byId('low').value = view.low ? 'low' : 'high';
  byId('overlay').value = view.overlay;
  if (byId('find').value !== view.find) byId('find').value = view.find;
  showStage();
  showList();
  byId('problem').hidden = true;
  document.body.dataset.drawn = ++drawn;
}

function update(changes) {
  view = { ...view, ...changes };
  show().catch(fail);
  writeHash();
  const sample = meta.samples[view.sample];
  if ('target' in changes) byId('said').textContent = `${sample.targets[view.target]}, score ${number(sample.scores[view.target])}`;
  if (changes.pinned && list.found.length && data) {
    byId('said').textContent = `${partName(sample, view.part)}: most for ${sample.targets[ordered().found[0]]}`;
  }
}

function point(part) {
  if (part !== view.part) update({ part });
}

function chooseSample(s) {
  if (meta.samples[s]) update({ sample: s, part: -1, pinned: false, target: 0 });
}

const LETTERS = {
  '/': () => byId('find').focus(),
  '[': () => chooseSample(view.sample - 1),
  ']': () => chooseSample(view.sample + 1),
  v: () => update({ average: !view.average }),
  '?': () => byId('help').showModal(),
  Escape: () => update({ part: -1, pinned: false }),
};

function start() {
  if (typeof DecompressionStream === 'undefined') {
    fail(new Error('this browser has no DecompressionStream. Chrome 80, Firefox 113, Safari 16.4 and later have it.'));
  }
  byId('sample').replaceChildren(...meta.samples.map((sample, i) => {
    const made = document.createElement('option');
    [made.value, made.textContent] = [i, sample.name];
    return made;
  }));
  byId('sample-field').hidden = meta.samples.length === 1;
  byId('about').textContent = [meta.model, meta.composite, meta.samples.length === 1 ? meta.samples[0].name : '', `relevance in units of the ${meta.unit}`].filter(Boolean).join(' · ');
  byId('sample').addEventListener('change', (event) => chooseSample(Number(event.target.value)));
  byId('average').addEventListener('change', (event) => update({ average: event.target.checked }));
  byId('low').addEventListener('change', (event) => update({ low: event.target.value === 'low' }));
  byId('overlay').addEventListener('input', (event) => update({ overlay: Number(event.target.value) }));
  byId('help-open').addEventListener('click', () => byId('help').showModal());
  listenToStage();
  listenToList();
  document.addEventListener('keydown', (event) => {
    const typed = event.altKey && '[]/?'.includes(event.key);
    if (event.metaKey || ((event.ctrlKey || event.altKey) && !typed) || byId('help').open) return;
    if (event.target.closest?.('input[type=search], select') || !LETTERS[event.key]) return;
    event.preventDefault();
    LETTERS[event.key]();
  });
  window.addEventListener('hashchange', () => { view = readHash(); show().catch(fail); });
  view = readHash();
  show().catch(fail);
}

start();
