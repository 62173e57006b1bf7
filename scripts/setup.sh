#!/usr/bin/env bash
# Makes .venv and installs into it PyTorch, fastlrp (built from this checkout) and what its tests, demo and checks need.
# Called by the Makefile, which sets PYTHON, TORCH and VENV.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3} torch=${TORCH:-torch==2.13.0} venv=${VENV:-.venv}

fail() {
  printf 'make install: %s\n' "$@" >&2
  exit 1
}

command -v "$python" >/dev/null || fail "there is no '$python'; name one, Python 3.11 or later: make PYTHON=/path/to/python3"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  fail "$("$python" --version) is too old: fastlrp needs Python 3.11 or later; name one: make PYTHON=/path/to/python3"
cxx=${CXX:-c++}
command -v "${cxx%% *}" >/dev/null ||
  fail "there is no C++ compiler ('$cxx'); install one (on Debian or Ubuntu: apt-get install g++) or set CXX"

# A venv whose creation was cut off has no pip.
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  echo "fastlrp: making $venv"
  "$python" -m venv --clear "$venv" ||
    fail "'$python -m venv' failed; on Debian or Ubuntu it is a package of its own: apt-get install python3-venv"
fi
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

# Read as words, so that TORCH may carry options (--index-url …).
# shellcheck disable=SC2086
[ "$(cat "$venv/torch" 2>/dev/null)" = "$torch" ] || pip install $torch
echo "$torch" >"$venv/torch"
pip install -q "setuptools>=77" wheel ninja "pybind11>=2.13"
echo "fastlrp: building and installing"
pip install -q --no-build-isolation -e ".[test,demo,dev]"
# The Triton kernels are tested without a GPU; elsewhere PyTorch brings its own Triton.
"$venv/bin/python" -c 'import triton' 2>/dev/null || pip install -q --no-deps "${TRITON:-triton==3.7.1}" ||
  echo "fastlrp: Triton cannot be installed here; the tests of its kernels are skipped"
# Oracles of the tests and rivals of the benchmarks, never imported by the package; torchvision is that of torch 2.13.
pip install -q --no-deps zennit==0.5.1 captum==0.9.0 "${TORCHVISION:-torchvision==0.28.0}"
pip install -q --no-deps autolrp==0.2.0 || echo "fastlrp: autoLRP cannot be installed here; the tests with it are skipped"
# Models that the tests explain, with random weights.
pip install -q "transformers>=5.24,<6" && pip install -q --no-deps "timm==1.0.31" ||
  echo "fastlrp: transformers and timm cannot be installed here; the tests with their models are skipped"
# The other version of Zennit whose numbers the drop-in replacement has, in a folder of its own. Its metadata ask for Python
# 3.11.11, which it does not need.
pip install -q --no-deps --ignore-requires-python --upgrade --target "$venv/zennit-1.0.0" zennit==1.0.0 ||
  echo "fastlrp: Zennit 1.0.0 cannot be installed here; the tests with it are skipped"
touch "$venv/installed"
