// What is shown as a file: a figure (SVG, PNG) of the panels, or the numbers (CSV).
const SAVED = { png: 'image/png', svg: 'image/svg+xml', csv: 'text/csv' };
const CELL = 340; // Width of a panel in the figure, in pixels.
const PEN = byId('pen').namespaceURI;
// XML has no control characters and no halves of surrogate pairs.
const clean = (text) => text.replace(/[^\t\n\r\x20-\ud7ff\ue000-\ufffd\u{10000}-\u{10ffff}]/gu, '\ufffd');

function shape(tag, attributes, text) {
  const made = document.createElementNS(PEN, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = clean(text);
  return made;
}

const picture = (href, x, y, width, height) => shape('image', {
  href, x, y, width, height, preserveAspectRatio: 'none', 'image-rendering': 'pixelated',
});
const cut = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

// One panel as a group, and how high it is.
function drawnPanel(slot) {
  const group = shape('g', {});
  const text = (words, y, more = {}) => group.append(shape('text', { x: 0, y, 'font-size': 12, ...more }, words));
  const title = slot === 'photo' ? 'Input' : slot === 'd' ? 'A − B' : byId(`name-${slot}`).textContent;
  text(cut(title, 40), 14, { 'font-size': 15, 'font-weight': 600 });
  const facts = [...byId(`panel-${slot}`).querySelectorAll('.facts div')].filter((fact) => !fact.hidden && fact.lastElementChild.textContent);
  text(cut(facts.map((fact) => [...fact.children].map((part) => part.textContent).join(' ')).join(', '), 62), 32, { fill: '#444' });
  const ratio = Number(getComputedStyle(byId(`frame-${slot}`)).getPropertyValue('--ratio'));
  const height = CELL / ratio;
  const box = shape('svg', { y: 40, width: CELL, height, overflow: 'hidden' });
  box.append(shape('rect', { width: CELL, height, fill: '#fff' }));
  const image = byId(`image-${slot}`);
  if (image && !image.hidden && image.src) box.append(picture(image.src, 0, 0, CELL, height));
  const canvas = byId(`map-${slot}`);
  if (canvas) {
    const share = (side) => (parseFloat(canvas.style[side]) || 100) / 100;
    box.append(picture(canvas.toDataURL(), 0, 0, CELL * share('width'), height * share('height')));
  }
  group.append(box, shape('rect', { y: 40, width: CELL, height, fill: 'none', stroke: '#888' }));
  if (!canvas) return { group, height: height + 44 };
  group.append(picture(byId(`bar-${slot}`).toDataURL(), 0, height + 50, CELL, 10));
  [['low', 0, 'start'], ['mid', CELL / 2, 'middle'], ['high', CELL, 'end']].forEach(([end, x, anchor]) => {
    text(byId(`${end}-${slot}`).textContent, height + 75, { x, 'text-anchor': anchor });
  });
  return { group, height: height + 80 };
}

function figure() {
  const slots = ['photo', ...PANELS].filter((slot) => !byId(`panel-${slot}`).hidden);
  const drawn = slots.map(drawnPanel);
  const [width, height] = [slots.length * (CELL + 24) + 24, Math.max(...drawn.map((one) => one.height)) + 60];
  const made = shape('svg', { xmlns: PEN, width, height, viewBox: `0 0 ${width} ${height}`, 'font-family': 'sans-serif' });
  made.append(shape('rect', { width, height, fill: '#fff' }));
  drawn.forEach(({ group }, i) => {
    group.setAttribute('transform', `translate(${24 + i * (CELL + 24)} 20)`);
    made.append(group);
  });
  const about = [meta.samples[view.sample].name, `layer ${view.layer}`, meta.model, meta.composite, `relevance in units of the ${meta.unit}`];
  made.append(shape('text', { x: 24, y: height - 14, 'font-size': 12, fill: '#444' }, cut(about.filter(Boolean).join(' · '), width / 7)));
  return { text: new XMLSerializer().serializeToString(made), width, height };
}

async function pixelsOf({ text, width, height }) {
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  await image.decode();
  const canvas = document.createElement('canvas');
  [canvas.width, canvas.height] = [2 * width, 2 * height];
  canvas.getContext('2d').drawImage(image, 0, 0, 2 * width, 2 * height);
  return new Promise((done) => { canvas.toBlob(done, 'image/png'); });
}

// A line for each place; where a cell is the sum of several, its first place.
function numbersOf() {
  const sample = meta.samples[view.sample];
  const quoted = (words) => `"${words.replaceAll('"', '""')}"`;
  const slots = view.compare ? SLOTS : ['a'];
  const { map, layer } = panels.a;
  const heads = slots.map((slot) => quoted(
    `${slot.toUpperCase()}: ${namesOf(sample)[view[slot]]} ${methodOf(sample, view[slot])}`.trim() + `, score ${sample.scores[view[slot]]}`));
  const lines = [[isRow(layer) ? 'neuron' : 'y,x', ...heads].join(',')];
  for (let i = 0; i < map.q.length; i++) {
    const [y, x] = [Math.floor(i / map.width) * layer.factor, (i % map.width) * layer.factor];
    const values = slots.map((slot) => Number((panels[slot].map.q[i] * panels[slot].map.scale).toPrecision(7)));
    lines.push([...(isRow(layer) ? [x] : [y, x]), ...values].join(','));
  }
  return `${lines.join('\r\n')}\r\n`;
}

async function save(kind) {
  if (view.overview !== 'none') update({ overview: 'none' });
  await showMaps();
  const content = kind === 'csv' ? numbersOf() : kind === 'svg' ? figure().text : await pixelsOf(figure());
  const link = document.createElement('a');
  const words = [meta.samples[view.sample].name.split('/').at(-1), namesOf(meta.samples[view.sample])[view.a], view.layer];
  link.download = `${words.map((word) => word.replace(/[^\p{L}\p{N}.-]+/gu, '-').slice(0, 40)).join('_')}.${kind}`;
  link.href = URL.createObjectURL(new Blob([content], { type: SAVED[kind] }));
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
