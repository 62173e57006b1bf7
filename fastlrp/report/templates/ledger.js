// Where the relevance of the chosen target stayed.
function cells(tag, texts, headers) {
  const row = document.createElement('tr');
  texts.forEach((text, i) => {
    const cell = document.createElement(i < headers ? 'th' : tag);
    if (i < headers) cell.scope = 'row';
    cell.textContent = text;
    row.append(cell);
  });
  return row;
}

function ledgerText(view, ledger, rows, everyTarget) {
  const sample = meta.samples[view.sample];
  const name = `${view.slot.toUpperCase()}: ${namesOf(sample)[view[view.slot]]}`;
  if (!ledger) return 'This report was written without a ledger.';
  if (!rows) {
    const made = Object.keys(ledger.rows).length;
    return `There is no ledger for ${name}. It was made for ${made} of ${sample.scores.length} targets of this sample, ` +
      'the best scores first; fastlrp.report.collect(…, ledger=N) makes it for N.';
  }
  return `${everyTarget ? 'All targets together' : name}. From the output down: the relevance that arrived at each layer, ` +
    `what it sent on, and what it kept, in units of the ${meta.unit}.`;
}

function showLedger(view) {
  const ledger = meta.samples[view.sample].ledger;
  const own = ledger?.rows[view[view.slot]];
  const rows = own ?? ledger?.rows.all;
  byId('ledger-text').textContent = ledgerText(view, ledger, rows, !own);
  byId('ledger-scroll').hidden = !rows;
  if (!rows) return;
  byId('ledger-rows').replaceChildren(...rows.map(([layer, arrived, sent, bias, stabilizer, dead, error]) => {
    const [path, operation, rule] = ledger.layers[layer];
    const numbers = [arrived, sent, bias, stabilizer, dead].map((value) => number(value));
    return cells('td', [path || '(model)', operation, rule, ...numbers, number(error, false)], 1);
  }));
  byId('ledger').classList.toggle('unchecked', rows.every((row) => row[6] === null));
  // The input may be read by several layers: what it got is the sum of its map.
  const totals = layerOf(meta.samples[view.sample], 'input').totals;
  const reached = own ? totals[view[view.slot]] : totals.reduce((total, value) => total + value, 0);
  const sum = (at) => rows.reduce((total, row) => total + (row[at] ?? 0), 0);
  const sums = [rows[0][1], reached, sum(3), sum(4), sum(5)].map((value) => number(value));
  byId('ledger-sums').replaceChildren(cells('td', ['Total', '', '', ...sums, ''], 1));
}
