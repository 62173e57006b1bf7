// A strip of all samples; only the pictures in sight exist.
const THUMB = 84; // Pixels from one to the next.
const strip = { box: byId('thumbs'), rail: byId('thumbs-rail'), view: null };

function thumbOf(s) {
  const sample = meta.samples[s];
  const thumb = element('div', 'thumb');
  thumb.id = `sample-${s}`;
  thumb.dataset.sample = s;
  thumb.setAttribute('role', 'option');
  thumb.setAttribute('aria-selected', String(s === strip.view.sample));
  thumb.style.left = `${s * THUMB}px`;
  thumb.title = sample.truth ? `${sample.name} (true class: ${sample.truth})` : sample.name;
  if (sample.image) {
    const image = element('img', '');
    image.alt = '';
    image.draggable = false;
    image.src = `data:image/png;base64,${textOf(`image-${s}`)}`;
    thumb.append(image);
  } else {
    thumb.append(element('span', 'blank', String(s + 1)));
  }
  const name = element('span', 'name', sample.name.split('/').at(-1));
  name.dir = 'auto';
  thumb.append(name);
  return thumb;
}

function drawThumbs() {
  const from = Math.max(0, Math.floor(strip.box.scrollLeft / THUMB) - 2);
  const to = Math.min(meta.samples.length, Math.ceil((strip.box.scrollLeft + strip.box.clientWidth) / THUMB) + 2);
  strip.rail.replaceChildren(...Array.from({ length: Math.max(0, to - from) }, (_, i) => thumbOf(from + i)));
  const chosen = `sample-${strip.view.sample}`;
  if (byId(chosen)) strip.box.setAttribute('aria-activedescendant', chosen);
  else strip.box.removeAttribute('aria-activedescendant');
}

function showThumbs(view) {
  const moved = strip.view?.sample !== view.sample;
  strip.view = view;
  strip.box.hidden = meta.samples.length === 1;
  strip.rail.style.width = `${meta.samples.length * THUMB}px`;
  if (moved) {
    const [from, to] = [view.sample * THUMB, (view.sample + 1) * THUMB];
    if (from < strip.box.scrollLeft) strip.box.scrollLeft = from;
    else if (to > strip.box.scrollLeft + strip.box.clientWidth) strip.box.scrollLeft = to - strip.box.clientWidth;
  }
  drawThumbs();
}

function listenToThumbs() {
  strip.box.addEventListener('scroll', drawThumbs, { passive: true });
  strip.box.addEventListener('click', (event) => {
    const thumb = event.target.closest('[data-sample]');
    if (thumb) update(withSample(view, Number(thumb.dataset.sample)));
  });
  new ResizeObserver(drawThumbs).observe(strip.box);
}
