# Needs Python >= 3.11 and a package index, nothing else. Variables:
#   PYTHON       the Python to use (default python3)
#   TORCH_INDEX  a package index for PyTorch alone. For a machine without a GPU, use the CPU build,
#                a tenth of the size: make run TORCH_INDEX=https://download.pytorch.org/whl/cpu
#   RECIPE, ARGS recipe and options of `make run` (default: tiny, none)
#   GPUS         number of ranks of `make run` on this machine (default 1: without torchrun)

PYTHON ?= python3
RECIPE ?= tiny
ARGS ?=
GPUS ?= 1
TORCH_INDEX ?=

BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest
# Two test processes of one thread each, for two cores.
PARALLEL := OMP_NUM_THREADS=1 $(PYTEST) -n 2 --dist worksteal

.PHONY: help setup setup-dev run test test-slow test-gpu lint format wheel clean

help:
	@echo "make run        set up, then train, pack and score the recipe tiny (minutes)"
	@echo "make test       set up, then run the fast tests"
	@echo "make test-slow  run the slow tests: interrupted runs, several processes, whole recipes"
	@echo "make test-gpu   run the GPU tests, on a machine with a GPU"
	@echo "make lint       run ruff, pyright and the import rules"
	@echo "make wheel      build dist/*.tar.gz, and from that dist/*.whl"

.venv/python: # the environment itself
	$(PYTHON) -c 'import sys; sys.exit("paramgolf needs Python >= 3.11: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
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

.venv/ecosystem: .venv/dev
	$(BIN)/python -m pip install -q -c constraints.txt -e .[dev,ecosystem]
	touch $@

setup: .venv/package

setup-dev: .venv/dev

run: setup
	$(if $(filter 1,$(GPUS)),$(BIN)/paramgolf,$(BIN)/torchrun --standalone --local-addr=127.0.0.1 --nproc-per-node=$(GPUS) -m paramgolf) run $(RECIPE) $(ARGS)

test: setup-dev
	$(PARALLEL) -m "not slow and not gpu"

test-slow: .venv/ecosystem
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
	$(BIN)/python -m build

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache .hypothesis
