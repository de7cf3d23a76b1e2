# The set-up needs Python >= 3.11 and a package index, nothing else. Variables:
#   PYTHON       the Python to use (default python3)
#   TORCH_INDEX  a package index for PyTorch alone. A machine without a GPU takes the CPU build, a
#                tenth of the size: make run TORCH_INDEX=https://download.pytorch.org/whl/cpu
#   RECIPE, ARGS what `make run` runs (default tiny)
#   GPUS         on how many ranks of this machine, one a GPU (default 1, without torchrun)

PYTHON ?= python3
RECIPE ?= tiny
ARGS ?=
GPUS ?= 1
TORCH_INDEX ?=

BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest
# One thread a test process: two processes then share two cores without getting in each other's way.
PARALLEL := OMP_NUM_THREADS=1 $(PYTEST) -n 2

.PHONY: help setup setup-dev run test test-slow test-gpu lint format wheel clean

help:
	@echo "make run        set up, then run the recipe tiny: text to scored artifact, minutes"
	@echo "make test       set up, then the fast tests"
	@echo "make test-slow  kills, processes, whole runs;  make test-gpu: on a machine with a GPU"
	@echo "make lint       ruff, pyright, import rules;   make wheel: build dist/*.whl"

.venv/python: # the environment itself
	$(PYTHON) -c 'import sys; sys.exit("Python >= 3.11 is needed: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	touch $@

.venv/torch: .venv/python constraints.txt
	$(BIN)/python -m pip install -q $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) -c constraints.txt torch
	touch $@

.venv/package: .venv/torch pyproject.toml
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	touch $@

.venv/dev: .venv/package
	$(BIN)/python -m pip install -q -c constraints.txt -e .[dev]
	touch $@

setup: .venv/package

setup-dev: .venv/dev

run: setup
	$(if $(filter 1,$(GPUS)),$(BIN)/paramgolf,$(BIN)/torchrun --standalone --nproc-per-node=$(GPUS) -m paramgolf) run $(RECIPE) $(ARGS)

test: setup-dev
	$(PARALLEL) -m "not slow and not gpu"

test-slow: setup-dev
	$(PYTEST) -m "slow and not gpu"

test-gpu: setup-dev
	$(PYTEST) tests/gpu

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: setup-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: setup-dev
	$(BIN)/python -m build --wheel

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache .hypothesis
