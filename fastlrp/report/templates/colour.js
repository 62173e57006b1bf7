// Colour maps: colours at even steps. A diverging one has zero in its middle.
const COLOURS = {
  'blue-red': { title: 'Blue – white – red', diverging: true,
    steps: ['#08306b', '#2f6fb7', '#8fbde0', '#ffffff', '#f4a582', '#cf3d3a', '#67001f'] },
  'green-purple': { title: 'Purple – white – green', diverging: true,
    steps: ['#3f0a55', '#7d4a97', '#c3a5cf', '#ffffff', '#a3d59c', '#3c9350', '#00401c'] },
  'cold-hot': { title: 'Cold – black – hot', diverging: true,
    steps: ['#d8ffff', '#2fb4ff', '#1240c8', '#000000', '#c81e10', '#ffa01e', '#ffffd2'] },
  'violet-yellow': { title: 'Violet to yellow', diverging: false,
    steps: ['#1b0c3f', '#4c2a85', '#84358f', '#c04480', '#ee6a5c', '#fda64f', '#fcf29e'] },
  'grey': { title: 'Black to white', diverging: false, steps: ['#000000', '#ffffff'] },
};
const SHADES = 512;
const tables = new Map();

function channels(hex) {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

// SHADES colours, red, green and blue in a row.
function shades(name) {
  if (!tables.has(name)) {
    const steps = COLOURS[name].steps.map(channels);
    const table = new Uint8ClampedArray(3 * SHADES);
    for (let i = 0; i < SHADES; i++) {
      const at = (i / (SHADES - 1)) * (steps.length - 1);
      const from = Math.min(Math.floor(at), steps.length - 2);
      for (let c = 0; c < 3; c++) table[3 * i + c] = steps[from][c] + (at - from) * (steps[from + 1][c] - steps[from][c]);
    }
    tables.set(name, table);
  }
  return tables.get(name);
}

// Where in the table a value stands, for t = R / limit: the whole range, or with |R| the half from zero on.
function shadeOf(t, look) {
  const clamped = Math.max(-1, Math.min(1, t));
  const place = look.sign === 'absolute' && !COLOURS[look.colours].diverging
    ? Math.abs(clamped)
    : ((look.sign === 'absolute' ? Math.abs(clamped) : clamped) + 1) / 2;
  return Math.round(place * (SHADES - 1));
}

// 0: image only. 1/2: opaque where relevance is strong, clear where there is none. 1: heatmap only.
function opacityOf(t, overlay) {
  const strength = Math.sqrt(Math.min(1, Math.abs(t)));
  return overlay < 0.5 ? 2 * overlay * strength : strength + (2 * overlay - 1) * (1 - strength);
}
