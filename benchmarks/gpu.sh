#!/usr/bin/env bash
# Everything that needs a GPU, in one command: builds, tests, compute-sanitizer, benchmarks, a summary.
#
#   benchmarks/gpu.sh [options] OUT
#
#   --quick          few calls, fewer precisions: minutes instead of an hour; the default is everything (--full)
#   --only a,b       these parts alone (--dry-run lists them); what is not built yet is built first
#   --ncu            also the profiler's figures of the largest calls (part ncu)
#   --seconds N      begin no part after N seconds, and give none more time than is left
#   --resume         leave out the parts that OUT/status.jsonl already calls ok
#   --no-build       with $PYTHON as it is: fastlrp is installed there
#   --prepare        no GPU: make what a run takes along (build/gpu/carry), so that its minutes go into running
#   --rehearse       on the CPU, with tiny shapes: shows that this script works, and measures nothing
#   --dry-run        say what would run, and end
#
# Environment: PYTHON (python3, with a CUDA PyTorch), FASTLRP_WHEELS (folder of wheels to install: zennit, captum;
# without them these take no part), FASTLRP_COMMIT (what rows call the commit where there is no git), FASTLRP_GPU_VENV,
# FASTLRP_GPU_LIMIT (most seconds of any part), TORCH_CUDA_ARCH_LIST (by default the GPU's own; with --prepare 9.0a),
# FASTLRP_CARRY (folder of what was prepared: build/gpu/carry).
# OUT gets rows.jsonl (measurements), status.jsonl (parts), log.txt, summary.md, and ncu.txt. Every part has a time
# limit and its own process: one that fails or takes too long loses nothing of the others.
# Exit code: 0 all parts ok, 1 a part failed, 2 no GPU or a wrong call.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

# part, seconds at most (quick, full), what it is; those come first without which the others are worth nothing
parts() {
  cat <<'TABLE'
build 300 420 the extension with CUDA, in a virtual environment
smoke 150 240 one small call of every kernel, each in a process of its own
tests 240 560 pytest tests/gpu -m gpu
memcheck 120 420 compute-sanitizer, wrong addresses, on the small op tests
roofline 60 120 measured peaks; the dense floor, layer by layer
models 300 580 one image, 256 targets: fastlrp, Zennit, a gradient, the floor
ops 180 560 every fused operation beside the same composed of PyTorch calls
sparse 80 300 living neurons only beside the dense product, down and up
attention 120 400 attention of transformers beside composed PyTorch calls and PyTorch's backward pass
norm 40 90 norms of transformers beside composed PyTorch calls
recurrence 40 60 all steps of an LSTM beside composed PyTorch calls
racecheck 180 420 compute-sanitizer, races in shared memory, on the small op tests
batch 120 400 64 images, one target each
stream 60 150 1000 targets in blocks: flat time, bounded memory
replay 40 60 a small network, its launches recorded once
ncu 150 300 the profiler's figures of the largest calls (only if asked for)
TABLE
}

say() { printf '%s\n' "$*"; }
fail() {
  say "gpu.sh: $*" >&2
  exit 2
}
usage() { fail "$1; benchmarks/gpu.sh --help says what there is"; }

mode=full only='' with_ncu=0 budget='' resume=0 build=1 rehearse=0 prepare=0 dry=0 out='' inside=''
while [ $# -gt 0 ]; do
  case $1 in
    --quick) mode=quick ;;
    --full) mode=full ;;
    --only) only=${2:-} && [ -n "$only" ] || usage "--only names parts" && shift ;;
    --ncu) with_ncu=1 ;;
    --seconds)
      budget=${2:-}
      [[ $budget =~ ^[0-9]+$ ]] || usage "--seconds wants a whole number, got '$budget'"
      shift
      ;;
    --resume) resume=1 ;;
    --no-build) build=0 ;;
    --rehearse) rehearse=1 ;;
    --prepare) prepare=1 ;;
    --dry-run) dry=1 ;;
    --inside) inside=$2 && shift ;;
    -h | --help) sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" && exit 0 ;;
    -*) usage "there is no option $1" ;;
    *) [ -z "$out" ] || usage "one OUT, got '$out' and '$1'" && out=$1 ;;
  esac
  shift
done

PYTHON=${PYTHON:-python3}
venv=${FASTLRP_GPU_VENV:-build/gpu/venv}
carry=${FASTLRP_CARRY:-build/gpu/carry}
export PYTHONUNBUFFERED=1 TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$PWD/build/gpu/triton}
unset TRITON_INTERPRET
# The toolkit's programs, where nobody put them on the path; and its folder, which PyTorch takes for that above nvcc's:
# an nvcc that only calls another one has no headers beside it.
[ -d "${CUDA_HOME:-/usr/local/cuda}/bin" ] && PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin
if [ -z "${CUDA_HOME:-}" ] && nvcc=$(command -v nvcc); then
  for folder in "${nvcc%/bin/nvcc}" /usr/local/cuda; do
    [ -e "$folder/include/cuda_runtime.h" ] && export CUDA_HOME=$folder && break
  done
fi

# Which parts

known=$(parts | cut -d' ' -f1)
for name in ${only//,/ }; do
  grep -qx "$name" <<<"$known" || usage "there is no part '$name'; there are: $(tr '\n' ' ' <<<"$known")"
done
[[ ",$only," == *,ncu,* ]] && with_ncu=1

wanted() { # part
  if [ "$1" = build ]; then [ "$build" = 1 ] && [ "$rehearse" = 0 ] && return 0 || return 1; fi
  if [ "$1" = ncu ] && [ "$with_ncu" = 0 ]; then return 1; fi
  [ -z "$only" ] || [[ ",$only," == *,$1,* ]]
}

limit_of() { # quick, full: seconds that a part may take
  local limit=$2
  [ "$mode" = quick ] && limit=$1
  [ "$rehearse" = 1 ] && limit=600 # the emulator may have to be compiled first
  [ -n "${FASTLRP_GPU_LIMIT:-}" ] && [ "$FASTLRP_GPU_LIMIT" -lt "$limit" ] && limit=$FASTLRP_GPU_LIMIT
  say "$limit"
}

if [ "$dry" = 1 ]; then
  total=0
  while read -r name quick full what; do
    wanted "$name" || continue
    limit=$(limit_of "$quick" "$full")
    total=$((total + limit))
    printf '%-10s at most %4d s  %s\n' "$name" "$limit" "$what"
  done < <(parts)
  say "$mode: at most $total s in all"
  exit 0
fi

[ -n "$out" ] || [ "$prepare" = 1 ] || usage "OUT is missing"
command -v "$PYTHON" >/dev/null || fail "there is no '$PYTHON'; set PYTHON to one that has a CUDA PyTorch"

# What needs no GPU, ahead: the extension, and every kernel of Triton's that the first calls launch. PYTHON has the GPU
# machine's versions of Python, of CUDA in PyTorch, and of Triton.
if [ "$prepare" = 1 ]; then
  export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-9.0a} FASTLRP_BUILD_CUDA=1 MAX_JOBS=${MAX_JOBS:-$(nproc)}
  since=$(date +%s)
  [ -e fastlrp/kernels ] || ln -s ../kernels fastlrp/kernels
  "$PYTHON" setup.py -q build_ext --inplace --build-temp build/gpu/objects || fail "the extension does not build"
  "$PYTHON" -m tests.gpu.smoke --compile || fail "a kernel of Triton's does not compile"
  exec "$PYTHON" -m benchmarks.gpu.carry pack "$carry" --since "$since"
fi

no_gpu() {
  "$PYTHON" - <<'CODE'
try:
    import torch
except ImportError as error:
    raise SystemExit(f"PyTorch does not load: {error}")
if torch.version.cuda is None:
    raise SystemExit(f"this PyTorch ({torch.__version__}) is built without CUDA")
if not torch.cuda.is_available():
    raise SystemExit(f"PyTorch {torch.__version__} (CUDA {torch.version.cuda}) sees no CUDA device")
CODE
}
if [ "$rehearse" = 0 ]; then
  reason=$(no_gpu 2>&1) || fail "nothing to measure on: ${reason##*$'\n'}; --rehearse runs on the CPU"
fi

# The build, in a process of its own (--inside build)

HAS_CUDA='from fastlrp.backends.cuda import kernels; raise SystemExit(kernels() if isinstance(kernels(), str) else 0)'

fingerprint() {
  "$PYTHON" -c 'import sys, torch; print(sys.version, torch.__version__, sys.argv[1:])' "$TORCH_CUDA_ARCH_LIST"
  find csrc setup.py pyproject.toml -type f | LC_ALL=C sort | xargs sha256sum
  find "${FASTLRP_WHEELS:-/nonexistent}" -name '*.whl' 2>/dev/null | LC_ALL=C sort
}

build_all() {
  local stamp
  if [ -z "${TORCH_CUDA_ARCH_LIST:-}" ]; then
    # 9.0a has instructions that 9.0 leaves out.
    TORCH_CUDA_ARCH_LIST=$(
      "$PYTHON" - <<'CODE'
import torch
major, minor = torch.cuda.get_device_capability()
print(f"{major}.{minor}{'a' if (major, minor) == (9, 0) else ''}")
CODE
    )
  fi
  export TORCH_CUDA_ARCH_LIST
  stamp=$(fingerprint | sha256sum)
  if [ "$(cat "$venv/stamp" 2>/dev/null)" = "$stamp" ] && "$venv/bin/python" -m fastlrp.info; then
    say "nothing has changed since the last build"
    return 0
  fi
  # Without pip of its own: it takes the parent's packages, pip among them, also where the parent is a virtual
  # environment itself, whose packages --system-site-packages would not show.
  "$PYTHON" -m venv --clear --without-pip "$venv" || return 1
  "$PYTHON" - "$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" <<'CODE' || return 1
import sys
from pathlib import Path

folders = [p for p in sys.path if p.endswith(("site-packages", "dist-packages"))]
Path(sys.argv[1], "parent.pth").write_text("".join(f"import site; site.addsitedir({p!r})\n" for p in folders))
CODE
  local pip=("$venv/bin/python" -m pip --disable-pip-version-check install --no-deps --no-index)
  if [ -n "${FASTLRP_WHEELS:-}" ]; then
    "${pip[@]}" "$FASTLRP_WHEELS"/*.whl || return 1
  else
    say "FASTLRP_WHEELS is not set: without zennit or captum in $PYTHON's packages these take no part"
  fi
  # What was made ahead, if it was made of these sources for this Python.
  if "$PYTHON" -m benchmarks.gpu.carry unpack "$carry"; then
    "$PYTHON" -c 'import sys; open(sys.argv[1], "w").write(sys.argv[2])' \
      "$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/fastlrp.pth" "$PWD"
    "$venv/bin/python" -m fastlrp.info && "$venv/bin/python" -c "$HAS_CUDA" && say "$stamp" >"$venv/stamp" && return 0
    say "what was made ahead does not load here, so that it is built"
    rm -f "$venv"/lib/python*/site-packages/fastlrp.pth
  fi
  export PATH=$PWD/$venv/bin:$PATH MAX_JOBS=${MAX_JOBS:-$(nproc)}
  if FASTLRP_BUILD_CUDA=1 "${pip[@]}" --no-build-isolation -v -e .; then
    "$venv/bin/python" -m fastlrp.info && say "$stamp" >"$venv/stamp"
    return
  fi
  say "wrong: the build with CUDA failed; once more without, so that Triton's kernels can be measured"
  FASTLRP_BUILD_CUDA=0 "${pip[@]}" --no-build-isolation -e . && "$venv/bin/python" -m fastlrp.info
  return 1
}

mkdir -p "$out" || fail "cannot make $out"
out=$(cd "$out" && pwd)
rows=$out/rows.jsonl status=$out/status.jsonl log=$out/log.txt
if [ "$inside" = build ]; then
  build_all
  exit
fi

# What each part runs

py=$venv/bin/python
if [ "$build" = 0 ] || [ "$rehearse" = 1 ]; then py=$PYTHON; fi

in_quick() { # words that a quick run adds
  if [ "$mode" = quick ]; then command+=("$@"); fi
}

command_of() { # part, seconds; sets the array command
  local bench=("$py" -m "benchmarks.gpu.$1" --output "$rows" --seconds "$(($2 > 40 ? $2 - 20 : $2))")
  local models=("$py" -m benchmarks.gpu.models --output "$rows" --seconds "$(($2 > 60 ? $2 - 40 : $2))" --scenario)
  local sanitizer=(compute-sanitizer --error-exitcode 9 --print-limit 20)
  local small=("$py" -m pytest -m gpu -q -p no:cacheprovider tests/gpu/test_gpu_small.py)
  local both="tf32,bfloat16" many=usual
  [ "$mode" = quick ] && many=quick
  case $1 in
    build) command=(bash benchmarks/gpu.sh --inside build "$out") ;;
    smoke) command=("$py" -m tests.gpu.smoke --output "$rows" --seconds "$(($2 > 60 ? $2 - 40 : $2))" --limit 40) ;;
    tests)
      # By folder: tests/kernels would switch Triton to its interpreter for the whole process.
      command=(env "FASTLRP_GPU_TESTS=$many" "FASTLRP_GPU_RESULTS=$rows" "$py" -m pytest -q -p no:cacheprovider)
      command+=(-m gpu tests/gpu tests/viz/test_viz_heatmap.py)
      # A test that hangs ends its process; another one takes its place.
      "$py" -c 'import pytest_timeout' 2>/dev/null && command+=(--timeout 150 --timeout-method thread)
      # Most of the time goes into compiling kernels, one process each.
      "$py" -c 'import xdist' 2>/dev/null && command+=(-n "$(($(nproc) > 14 ? 14 : $(nproc)))")
      ;;
    memcheck) command=(env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "${sanitizer[@]}" --tool memcheck "${small[@]}") ;;
    racecheck) command=("${sanitizer[@]}" --tool racecheck "${small[@]}") ;;
    roofline) command=("${bench[@]}") ;;
    ops)
      command=("${bench[@]}")
      in_quick --few 3 --targets 128 --precisions "$both"
      ;;
    sparse)
      command=("${bench[@]}")
      in_quick --precisions tf32 --densities "0.5,0.25"
      ;;
    attention | norm | recurrence)
      command=("$py" -m benchmarks.gpu.transformer --output "$rows" --seconds "$(($2 > 40 ? $2 - 20 : $2))" --ops "$1")
      in_quick --targets 32 --precisions "$both"
      ;;
    models)
      command=("${models[@]}" targets)
      in_quick --precisions "$both" --repeats 2
      ;;
    batch)
      command=("${models[@]}" batch --others "floor,zennit")
      in_quick --precisions tf32 --repeats 2
      ;;
    stream)
      command=("${models[@]}" stream --others '' --precisions "$both")
      in_quick --precisions tf32 --counts "256,1000"
      ;;
    replay) command=("${models[@]}" replay --others "gradient,zennit" --precisions "float32,tf32") ;;
    ncu)
      command=(ncu --profile-from-start off --clock-control none --target-processes all --section SpeedOfLight)
      command+=(--section Occupancy --section MemoryWorkloadAnalysis --section LaunchStats --force-overwrite)
      command+=(--log-file "$out/ncu.txt" "$py" -m benchmarks.gpu.ops --profile --few 1 --targets 128)
      command+=(--precisions "$both")
      ;;
  esac
  [ "$rehearse" = 0 ] || rehearsed "$1"
}

rehearsed() { # part: the same on the CPU
  local cpu=(--device cpu --tiny --models small)
  case $1 in
    smoke) command+=(--rehearse --only "norm_relevance") ;;
    roofline) command+=("${cpu[@]}" --precisions float32 --floor-precisions float32) ;;
    ops) command+=("${cpu[@]}" --targets 3 --precisions float32 --backends cpu --few 1) ;;
    sparse) command+=("${cpu[@]}" --targets 16 --precisions float32) ;;
    attention | norm | recurrence) command+=(--device cpu --tiny --targets 3 --precisions float32 --backends torch) ;;
    models | batch | stream)
      command+=("${cpu[@]}" --composites epsilon_plus --precisions float32 --backends auto --counts "4,10" --repeats 1)
      ;;
  esac
}

missing() { # part: a program that it needs and that is not there
  [ "$rehearse" = 1 ] && return 1
  case $1 in
    memcheck | racecheck) command -v compute-sanitizer >/dev/null || say "compute-sanitizer is not installed" ;;
    ncu) command -v ncu >/dev/null || say "ncu is not installed" ;;
  esac | grep .
}

begin=$SECONDS failed=0
note() { # part, result, code, seconds, limit, what it was
  printf '{"part": "%s", "result": "%s", "code": %d, "seconds": %d, "limit": %d, "mode": "%s", "note": "%s"}\n' \
    "$1" "$2" "$3" "$4" "$5" "$mode" "$6" >>"$status"
  [ "$2" = ok ] || failed=1
  say "$1: $2, $4 s"
}

run() { # part, limit, what
  local left=$2 began code reason from
  if [ -n "$budget" ]; then
    left=$((budget - (SECONDS - begin)))
    if [ "$left" -lt 15 ]; then
      note "$1" "no time left" 124 0 "$2" "$3"
      return
    fi
    left=$((left < $2 ? left : $2))
  fi
  if reason=$(missing "$1"); then
    note "$1" "$reason" 127 0 "$left" "$3"
    return
  fi
  command_of "$1" "$left"
  { say "" "=== $1, at most $left s: ${command[*]}"; } >>"$log"
  from=$(wc -l <"$log") began=$SECONDS
  timeout --signal=INT --kill-after=15 "$left" "${command[@]}" >>"$log" 2>&1 </dev/null
  code=$?
  case $code in
    0) note "$1" ok 0 $((SECONDS - began)) "$left" "$3" ;;
    124 | 137) note "$1" "took too long" $code $((SECONDS - began)) "$left" "$3" ;;
    *) note "$1" failed $code $((SECONDS - began)) "$left" "$3" ;;
  esac
  [ $code = 0 ] && return
  tail -n +$((from + 1)) "$log" | grep -E '^(wrong:|FAILED|ERROR|E  )' | cut -c1-300 | head -20
  say "    the end of its log:"
  tail -n +$((from + 1)) "$log" | tail -n 8 | cut -c1-200 | sed 's/^/    /'
}

[ -n "${FASTLRP_COMMIT:-}" ] || git rev-parse --short HEAD >/dev/null 2>&1 ||
  say "there is no git here: rows will call the commit unknown; FASTLRP_COMMIT names it"
say "$mode, $(date -u +%FT%TZ), into $out"
while read -r name quick full what; do
  wanted "$name" || continue
  if [ "$rehearse" = 1 ] && [[ " memcheck racecheck replay ncu " == *" $name "* ]]; then
    say "$name: cannot be rehearsed"
    continue
  fi
  done_before="\"part\": \"$name\", \"result\": \"ok\""
  if [ "$resume" = 1 ] && [ "$name" != build ] && grep -q "$done_before" "$status" 2>/dev/null; then
    say "$name: ok before"
    continue
  fi
  run "$name" "$(limit_of "$quick" "$full")" "$what"
  if [ "$name" = build ] && ! "$py" -c 'import fastlrp.kernels' 2>>"$log"; then
    say "fastlrp is not installed, so nothing can run"
    break
  fi
done < <(parts)

"$py" -m benchmarks.gpu.summary "$out" >"$out/.summary" 2>>"$log" || failed=1
cat "$out/.summary" && rm -f "$out/.summary"
exit $failed
