// The list of targets: only the rows in sight exist.
const ROW = 34;
const SPARE = 6;
const plain = (text) => text.normalize('NFKD').replace(/\p{M}/gu, '').toLowerCase();
const plainNames = meta.lists.map(() => null);
const collator = new Intl.Collator(undefined, { numeric: true, sensitivity: 'base' });

function plainNamesOf(sample) {
  plainNames[sample.targets] ??= namesOf(sample).map(plain);
  return plainNames[sample.targets];
}

// Positions of the targets that match, in order. A number also finds the target of this class.
function targetsOf(sample, sort, find, method) {
  const wanted = plain(find.trim());
  const names = namesOf(sample);
  const { order } = ranking(sample);
  let found = { score: order, low: [...order].reverse(), index: names.map((_, k) => k).sort((i, j) => classOf(sample, i) - classOf(sample, j) || i - j) }[sort]
    ?? names.map((_, k) => k).sort((i, j) => collator.compare(names[i], names[j]) || i - j);
  if (method) found = found.filter((k) => methodOf(sample, k) === method);
  if (wanted) {
    const searched = plainNamesOf(sample);
    found = found.filter((k) => searched[k].includes(wanted) || String(classOf(sample, k)) === wanted.replace(/^#/, ''));
  }
  return found;
}

const list = { box: byId('targets'), rows: byId('rows'), sample: null, found: [], view: null };

function element(tag, className, text) {
  const made = document.createElement(tag);
  made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function rowOf(place) {
  const { sample, found, view } = list;
  const k = found[place];
  const row = element('div', 'row');
  row.id = `target-${k}`;
  row.dataset.target = k;
  row.setAttribute('role', 'option');
  row.setAttribute('aria-selected', String(k === view[view.slot]));
  row.setAttribute('aria-posinset', place + 1);
  row.setAttribute('aria-setsize', found.length);
  row.style.top = `${place * ROW}px`;
  const largest = Math.max(...[0, -1].map((end) => Math.abs(sample.scores[ranking(sample).order.at(end)]))) || 1;
  row.style.setProperty('--share', `${(100 * Math.abs(sample.scores[k])) / largest}%`);
  row.classList.toggle('below', sample.scores[k] < 0);
  const name = element('span', 'name', namesOf(sample)[k]);
  name.dir = 'auto';
  name.title = namesOf(sample)[k];
  row.append(element('span', 'index', classOf(sample, k)), name);
  if (isTrue(sample, k)) {
    row.append(element('span', 'tick', '✓'));
    row.lastElementChild.title = 'the true class';
  }
  if (sample.methods && !view.method) row.append(element('span', 'method', methodOf(sample, k)));
  for (const slot of view.compare ? SLOTS : ['a']) {
    if (k === view[slot]) row.append(element('span', `badge ${slot}`, slot.toUpperCase()));
  }
  row.append(element('span', 'score', number(sample.scores[k])));
  return row;
}

function drawRows() {
  const from = Math.max(0, Math.floor(list.box.scrollTop / ROW) - SPARE);
  const to = Math.min(list.found.length, Math.ceil((list.box.scrollTop + list.box.clientHeight) / ROW) + SPARE);
  const rows = [];
  for (let place = from; place < to; place++) rows.push(rowOf(place));
  list.rows.replaceChildren(...rows);
  const chosen = `target-${list.view[list.view.slot]}`;
  if (byId(chosen)) list.box.setAttribute('aria-activedescendant', chosen);
  else list.box.removeAttribute('aria-activedescendant');
}

// Scroll as little as shows the chosen target.
function bringIntoSight() {
  const place = list.found.indexOf(list.view[list.view.slot]);
  if (place < 0) {
    list.box.scrollTop = 0;
    return;
  }
  const top = place * ROW;
  if (top < list.box.scrollTop) list.box.scrollTop = top;
  else if (top + ROW > list.box.scrollTop + list.box.clientHeight) list.box.scrollTop = top + ROW - list.box.clientHeight;
}

function showList(view) {
  const before = list.view;
  list.view = view;
  list.sample = meta.samples[view.sample];
  list.found = targetsOf(list.sample, view.sort, view.find, view.method);
  list.rows.style.height = `${list.found.length * ROW}px`;
  const all = list.sample.scores.length;
  const count = list.found.length;
  byId('count').textContent = count === all ? `${all} target${all === 1 ? '' : 's'}` : `${count} of ${all} targets`;
  if (!before || ['sample', 'a', 'b', 'slot', 'sort', 'find', 'method'].some((name) => before[name] !== view[name])) bringIntoSight();
  drawRows();
}

// The target that is `steps` further down the list; from a target that is filtered out, the first.
function neighbour(steps) {
  const { found, view } = list;
  const place = found.indexOf(view[view.slot]);
  return place < 0 ? found[0] : found[Math.max(0, Math.min(found.length - 1, place + steps))];
}
