// The classes of the part that is pointed at, or of the whole input.
const SHOWN = 60;
const plain = (text) => text.normalize('NFKD').replace(/\p{M}/gu, '').toLowerCase();
const searched = new Map();

function namesFor(s) {
  if (!searched.has(s)) searched.set(s, meta.samples[s].targets.map(plain));
  return searched.get(s);
}

// Targets by their relevance at the part, or by their score.
function ordered() {
  const sample = meta.samples[view.sample];
  const wanted = plain(view.find.trim());
  let found = sample.scores.map((_, k) => k);
  if (wanted) found = found.filter((k) => namesFor(view.sample)[k].includes(wanted));
  const value = view.part < 0 ? (k) => sample.scores[k] : (k) => valueOf(k, view.part);
  const sign = view.low ? -1 : 1;
  const values = new Map(found.map((k) => [k, value(k)]));
  return { found: found.sort((i, j) => sign * (values.get(j) - values.get(i)) || i - j), values };
}

const list = { found: [] };

function cell(tag, className, text) {
  const made = document.createElement(tag);
  made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function rowOf(k, value, largest) {
  const sample = meta.samples[view.sample];
  const row = cell('div', 'row');
  row.id = `target-${k}`;
  row.dataset.target = k;
  row.setAttribute('role', 'option');
  row.setAttribute('aria-selected', String(k === view.target));
  row.style.setProperty('--share', `${largest ? (100 * Math.abs(value)) / largest : 0}%`);
  row.classList.toggle('below', value < 0);
  const name = cell('span', 'name', sample.targets[k]);
  name.dir = 'auto';
  name.title = `${sample.targets[k]}: score ${number(sample.scores[k])}`;
  row.append(name, cell('span', 'score', number(value)));
  return row;
}

function showList() {
  const sample = meta.samples[view.sample];
  const { found, values } = ordered();
  list.found = found.slice(0, SHOWN);
  const largest = list.found.reduce((most, k) => Math.max(most, Math.abs(values.get(k))), 0);
  byId('targets').replaceChildren(...list.found.map((k) => rowOf(k, values.get(k), largest)));
  const chosen = `target-${view.target}`;
  if (byId(chosen)) byId('targets').setAttribute('aria-activedescendant', chosen);
  else byId('targets').removeAttribute('aria-activedescendant');
  byId('part-name').textContent = view.part < 0 ? 'All parts' : partName(sample, view.part);
  byId('part-text').textContent = view.part < 0
    ? 'Classes by their score. Point at a part to see for which classes it speaks.'
    : `Relevance of this part for each class${view.average ? ', above the average class' : ''}.${view.pinned ? ' Held: Esc lets go.' : ''}`;
  const more = sample.left ? `; ${sample.left} more of the model are not stored` : '';
  byId('count').textContent = `${Math.min(SHOWN, found.length)} of ${found.length} shown${more}`;
  showChosen(sample);
}

function showChosen(sample) {
  const k = view.target;
  byId('target-name').textContent = sample.targets[k];
  const total = sample.mean.reduce((sum, _, g) => sum + valueOf(k, g), 0);
  const here = view.part < 0 ? '' : `, this part ${number(valueOf(k, view.part))} ± ${number(errorOf(k), false)}`;
  byId('target-text').textContent = `score ${number(sample.scores[k])}, all parts together ${number(total)}${here}`;
}

function step(steps) {
  const at = list.found.indexOf(view.target);
  const next = at < 0 ? 0 : Math.min(list.found.length - 1, Math.max(0, at + steps));
  if (list.found.length) update({ target: list.found[next] });
  byId(`target-${view.target}`)?.scrollIntoView({ block: 'nearest' });
}

function listenToList() {
  byId('targets').addEventListener('click', (event) => {
    const row = event.target.closest('[data-target]');
    if (row) update({ target: Number(row.dataset.target) });
  });
  byId('targets').addEventListener('keydown', (event) => {
    const steps = { ArrowUp: -1, ArrowDown: 1, Home: -Infinity, End: Infinity, PageUp: -10, PageDown: 10 }[event.key];
    if (steps === undefined) return;
    step(steps);
    event.preventDefault();
  });
  byId('find').addEventListener('input', (event) => update({ find: event.target.value }));
  byId('find').addEventListener('keydown', (event) => {
    if (event.key === 'Enter' && list.found.length) update({ target: list.found[0] });
    if (event.key === 'Escape') update({ find: '' });
  });
}
