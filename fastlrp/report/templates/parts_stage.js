// The picture or the text with its parts in the colours of the chosen target.
const LOOK = { colours: 'blue-red', sign: 'symmetric' };

function limitOfTarget() {
  let most = 0;
  for (let g = 0; g < meta.samples[view.sample].count; g++) most = Math.max(most, Math.abs(valueOf(view.target, g)));
  return most;
}

function colourOf(t) {
  const table = shades(LOOK.colours);
  const from = 3 * shadeOf(t, LOOK);
  return [table[from], table[from + 1], table[from + 2]];
}

function drawPicture(sample, limit) {
  const [height, width] = sample.places;
  const canvas = byId('map');
  [canvas.width, canvas.height] = [width, height];
  byId('frame').style.setProperty('--ratio', width / height);
  const inks = Array.from({ length: sample.count }, (_, g) => {
    const t = limit ? valueOf(view.target, g) / limit : 0;
    return [...colourOf(t), 255 * opacityOf(t, sample.image ? view.overlay / 100 : 1)];
  });
  const pixels = new ImageData(width, height);
  data.places.forEach((g, i) => { if (g >= 0) pixels.data.set(inks[g], 4 * i); });
  canvas.getContext('2d').putImageData(pixels, 0, 0);
  byId('photo').hidden = !sample.image;
  if (sample.image && byId('photo').dataset.sample !== String(view.sample)) {
    byId('photo').src = `data:image/png;base64,${textOf(`image-${view.sample}`)}`;
    byId('photo').dataset.sample = view.sample;
  }
}

// The border of the part that is pointed at, on a canvas as fine as the screen.
function drawOutline(sample) {
  const canvas = byId('outline');
  const density = window.devicePixelRatio || 1;
  [canvas.width, canvas.height] = [Math.max(1, canvas.clientWidth * density), Math.max(1, canvas.clientHeight * density)];
  if (view.part < 0) return;
  const [height, width] = sample.places;
  const [dx, dy] = [canvas.width / width, canvas.height / height];
  const inside = (y, x) => y >= 0 && x >= 0 && y < height && x < width && data.places[y * width + x] === view.part;
  const path = new Path2D();
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (!inside(y, x)) continue;
      for (const [ny, nx, fy, fx, ty, tx] of [[y - 1, x, y, x, y, x + 1], [y + 1, x, y + 1, x, y + 1, x + 1],
        [y, x - 1, y, x, y + 1, x], [y, x + 1, y, x + 1, y + 1, x + 1]]) {
        if (inside(ny, nx)) continue;
        path.moveTo(fx * dx, fy * dy);
        path.lineTo(tx * dx, ty * dy);
      }
    }
  }
  const pen = canvas.getContext('2d');
  for (const [colour, thick] of [['#000', 5], [view.pinned ? '#ffd400' : '#fff', 2.5]]) {
    pen.strokeStyle = colour;
    pen.lineWidth = thick * density;
    pen.stroke(path);
  }
}

function drawTokens(sample, limit) {
  const box = byId('tokens');
  if (box.dataset.sample !== String(view.sample)) {
    box.replaceChildren(...sample.tokens.map((token, g) => {
      const made = document.createElement('span');
      made.className = 'token';
      made.dataset.part = g;
      made.textContent = token.replaceAll('\n', '⏎') || '∅';
      return made;
    }));
    box.dataset.sample = view.sample;
  }
  [...box.children].forEach((made, g) => {
    const t = limit ? valueOf(view.target, g) / limit : 0;
    const [red, green, blue] = colourOf(0.85 * t);
    made.style.background = `rgb(${red} ${green} ${blue})`;
    made.style.color = red + green + blue < 330 ? '#fff' : '#111';
    made.classList.toggle('chosen', g === view.part);
    made.classList.toggle('pinned', g === view.part && view.pinned);
    made.classList.toggle('later', sample.at !== null && g > sample.at);
    made.title = number(valueOf(view.target, g));
  });
}

function showStage() {
  const sample = meta.samples[view.sample];
  const limit = limitOfTarget();
  byId('frame').hidden = !sample.places;
  byId('tokens').hidden = Boolean(sample.places);
  byId('overlay-field').hidden = !sample.places || !sample.image;
  if (sample.places) {
    drawPicture(sample, limit);
    drawOutline(sample);
  } else {
    drawTokens(sample, limit);
  }
  const bar = new ImageData(256, 1);
  for (let x = 0; x < 256; x++) bar.data.set([...colourOf((2 * x) / 255 - 1), 255], 4 * x);
  byId('bar').getContext('2d').putImageData(bar, 0, 0);
  byId('low-end').textContent = number(-limit);
  byId('high-end').textContent = number(limit);
}

function partAt(event) {
  const sample = meta.samples[view.sample];
  if (!sample.places) return Number(event.target.closest('[data-part]')?.dataset.part ?? -1);
  const box = byId('frame').getBoundingClientRect();
  const [height, width] = sample.places;
  const cell = (at, from, size, cells) => Math.min(cells - 1, Math.max(0, Math.floor(((at - from) / size) * cells)));
  return data.places[cell(event.clientY, box.top, box.height, height) * width + cell(event.clientX, box.left, box.width, width)];
}

// The next part in a direction: of a text the neighbour; in a picture the first other part that a ray from the middle meets.
function neighbourPart(across, down) {
  const sample = meta.samples[view.sample];
  if (view.part < 0) return 0;
  if (!sample.places) return Math.min(sample.count - 1, Math.max(0, view.part + (across || down)));
  const [height, width] = sample.places;
  let [rows, columns, cells] = [0, 0, 0];
  data.places.forEach((g, i) => { if (g === view.part) { rows += Math.floor(i / width); columns += i % width; cells += 1; } });
  let [y, x] = [Math.round(rows / cells), Math.round(columns / cells)];
  for (;;) {
    [y, x] = [y + down, x + across];
    if (y < 0 || x < 0 || y >= height || x >= width) return view.part;
    const g = data.places[y * width + x];
    if (g >= 0 && g !== view.part) return g;
  }
}

function listenToStage() {
  for (const box of [byId('frame'), byId('tokens')]) {
    box.addEventListener('pointermove', (event) => { if (!view.pinned) point(partAt(event)); });
    box.addEventListener('pointerleave', () => { if (!view.pinned) point(-1); });
    box.addEventListener('click', (event) => {
      const part = partAt(event);
      update({ part, pinned: part >= 0 && !(view.pinned && part === view.part) });
    });
    box.addEventListener('keydown', (event) => {
      const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (step) update({ part: neighbourPart(...step), pinned: true });
      else if (event.key === 'Escape') update({ part: -1, pinned: false });
      else return;
      event.preventDefault();
    });
  }
  new ResizeObserver(() => { if (data && meta.samples[view.sample].places) drawOutline(meta.samples[view.sample]); }).observe(byId('frame'));
}
