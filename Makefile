# Every target calls `setup`, which does nothing once .venv is up to date.
PYTHON ?= python3
TORCH := torch==2.13.0
# What CUDA builds of that torch bring along; others have it for interpreting and compiling in tests.
TRITON := triton==3.7.1; platform_system == "Linux"
BIN := .venv/bin
STAMP := .venv/.installed
# Most of the long tests start two processes of their own, so more workers than this gain little.
TEST_WORKERS ?= 2
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: setup demo test long check gpu clean

setup: $(STAMP)

demo: setup
	OMP_NUM_THREADS=1 $(BIN)/python tools/demo.py

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile

# What proves something slowly: fuzzing, studies in small, kernels compiled for devices that are not here.
long: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m long -n $(TEST_WORKERS) --dist loadfile

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Nine minutes at most: whoever lends a device by the quarter of an hour gets it back in time. Of the
# tests only those of tests/gpu are collected: others register a second, fake accelerator in their
# process, and autograd then finds no streams on the real one.
gpu: setup
	@$(BIN)/python -c 'from compass.machine.devices import choose_device, this_machine; \
		from compass.distributed import launch; launch(lambda: choose_device("cuda", this_machine()))'
	@timeout 240 $(BIN)/python -m pytest tests/gpu -m gpu; tests=$$?; \
		timeout 280 $(BIN)/python tools/bench.py cuda --out docs/results/cuda.json --deadline-seconds 200 \
		&& exit $$tests

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

# torch goes first and by exact version: a bare `torch` among the other requirements may resolve to
# another build and download gigabytes.
$(STAMP): pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "error: $(PYTHON) is not Python 3.11 or newer; run: make PYTHON=/path/to/python3.11 setup" >&2; exit 1; }
	@echo "installing into .venv (a few minutes, about 2 GB; only the first time)"
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	@$(PIP) $(TORCH)
	@$(PIP) $(TORCH) '$(TRITON)' --editable '.[dev]'
	@touch $@
