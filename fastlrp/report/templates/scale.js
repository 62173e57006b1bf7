// The relevance that gets the full colour.

// Quantile of |R| over the positions that have relevance; 1 is the largest.
function limitOf(map, clip) {
  const total = map.q.length - map.counts[0];
  let rest = Math.ceil(clip * total);
  for (let size = 1; size < map.counts.length; size++) {
    rest -= map.counts[size];
    if (rest <= 0 && total > 0) return size * map.scale;
  }
  return 0;
}

// One limit for each map, or the larger for both.
function limitsOf(maps, view) {
  const limits = maps.map((map) => limitOf(map, view.clip / 1000));
  return view.shared ? limits.map(() => Math.max(...limits)) : limits;
}
