// From numbers to pixels.

// A map with one pixel for each cell; the page enlarges it.
function drawMap(canvas, map, limit, look) {
  const { q, width, height, scale } = map;
  canvas.width = width;
  canvas.height = height;
  const pixels = new ImageData(width, height);
  const colours = shades(look.colours);
  const inks = new Uint8ClampedArray(4 * 256); // One colour for each of the integers.
  for (let value = -128; value < 128; value++) {
    const t = limit ? (value * scale) / limit : 0;
    const from = 3 * shadeOf(t, look);
    inks.set([colours[from], colours[from + 1], colours[from + 2], 255 * opacityOf(t, look.overlay)], 4 * (value + 128));
  }
  for (let i = 0; i < q.length; i++) {
    const from = 4 * (q[i] + 128);
    for (let c = 0; c < 4; c++) pixels.data[4 * i + c] = inks[from + c];
  }
  canvas.getContext('2d').putImageData(pixels, 0, 0);
}

// A − B in integers of its own scale: what is shown is within the three bounds together.
function differenceOf(a, b) {
  const values = Float64Array.from(a.q, (q, i) => q * a.scale - b.q[i] * b.scale);
  const scale = values.reduce((most, value) => Math.max(most, Math.abs(value)), 0) / 127;
  const q = Int8Array.from(values, (value) => (scale ? Math.round(value / scale) : 0));
  return { q, width: a.width, height: a.height, counts: countsOf(q), scale, error: a.error + b.error + scale / 2 };
}

// Which neurons stand at column x of `columns`, and the strongest of them.
function neuronsAt(map, x, columns) {
  const from = Math.floor((x * map.width) / columns);
  const to = Math.max(from + 1, Math.floor(((x + 1) * map.width) / columns));
  let strongest = from;
  for (let n = from; n < to; n++) if (Math.abs(map.q[n]) > Math.abs(map.q[strongest])) strongest = n;
  return { from, to, strongest };
}

// A row of neurons as bars, up for and down against; where several share a column of pixels, the strongest.
function drawBars(canvas, map, limit, look) {
  const density = window.devicePixelRatio || 1;
  const width = (canvas.width = Math.max(1, Math.round(canvas.clientWidth * density)));
  const height = (canvas.height = Math.max(1, Math.round(canvas.clientHeight * density)));
  const context = canvas.getContext('2d');
  const absolute = look.sign === 'absolute';
  const zero = absolute ? height - 1 : Math.round(height / 2);
  const colours = shades(look.colours);
  const columns = Math.min(map.width, width);
  for (let x = 0; x < columns; x++) {
    const value = map.q[neuronsAt(map, x, columns).strongest] * map.scale;
    const t = limit ? Math.max(-1, Math.min(1, value / limit)) : 0;
    const length = Math.round(Math.abs(t) * (absolute ? height - 2 : height / 2 - 1));
    // The height tells the value; a colour near zero would be hard to see.
    const from = 3 * shadeOf(Math.sign(t) * Math.max(0.45, Math.abs(t)), look);
    const left = Math.round((x * width) / columns);
    const right = Math.round(((x + 1) * width) / columns);
    const gap = right - left > 4 * density ? density : 0;
    context.fillStyle = `rgb(${colours[from]} ${colours[from + 1]} ${colours[from + 2]})`;
    context.fillRect(left, t < 0 && !absolute ? zero : zero - length, right - left - gap, length);
  }
  context.fillStyle = getComputedStyle(canvas).color;
  context.fillRect(0, zero, width, 1);
}

function drawScale(canvas, look) {
  const colours = shades(look.colours);
  const pixels = new ImageData(canvas.width, 1);
  for (let x = 0; x < canvas.width; x++) {
    const share = x / (canvas.width - 1);
    const from = 3 * shadeOf(look.sign === 'absolute' ? share : 2 * share - 1, look);
    pixels.data.set([colours[from], colours[from + 1], colours[from + 2], 255], 4 * x);
  }
  canvas.getContext('2d').putImageData(pixels, 0, 0);
}
