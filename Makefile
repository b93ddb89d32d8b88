# Every target sets up .venv first when it is missing or older than pyproject.toml or constraints.txt.
#   PYTHON=python3.12           another interpreter, 3.11 or newer
#   TORCH_INDEX=https://...     where torch comes from, e.g. https://download.pytorch.org/whl/cpu (a tenth of the download)

PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Compiled code is kept: tests start many processes.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q
# One process a core, at most four: each holds torch and diffusers in memory.
PARALLEL := -n auto --maxprocesses 4 --durations 10

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow check faults test-browser test-gpu leaderboard lessons

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*##/\1/p' $(MAKEFILE_LIST) | awk '{name = $$1; $$1 = ""; printf "  make %-13s%s\n", name, $$0}'

install: $(READY)  ## set up .venv with the library and its tools

demo: $(READY)  ## fine-tune the built-in model and show its pictures before and after (minutes, no GPU needed)
	$(BIN)/tastemaker train shapes_demo

test: $(READY)  ## the tests, on the CPU
	$(PYTEST) $(PARALLEL) -m "not gpu and not browser and not slow"

check: $(READY)  ## format, lint and types, then the tests
	$(BIN)/ruff format --check src tests
	$(BIN)/ruff check src tests
	$(BIN)/mypy
	@$(MAKE) --no-print-directory test

# With a soak, a process that hangs, and the commands that start several; each mutation is a process of its own (docs/reliability.md).
faults: $(READY)  ## the fault matrix with its slow tests, then mutations that its tests have to find (minutes)
	$(PYTEST) $(PARALLEL) -m "not gpu and not browser" tests/faults tests/properties tests/trajectories \
		tests/test_launchers.py tests/test_sharding.py
	$(BIN)/python tests/faults/mutations.py

test-slow: $(READY)  ## the tests that `make test` leaves out for their time
	$(PYTEST) $(PARALLEL) -m "slow and not gpu and not browser"

ROWS ?= all
leaderboard: $(READY)  ## make the runs of the learning protocol that are missing (hours), and write docs/leaderboard.md
	$(BIN)/python benchmarks/learn.py --row $(ROWS) --jobs 2 --page docs/leaderboard.md

lessons: $(READY)  ## make the sweeps of docs/lessons.md that are missing (hours), and write its plots and numbers
	$(BIN)/python benchmarks/lessons.py

# pytest's exit code 5: there is no such test
test-browser: $(READY)  ## the tests of pages in Chromium, where it is installed
	$(PYTEST) -m browser tests/reports tests/voting || [ $$? -eq 5 ]

test-gpu: $(READY)  ## the tests that need an accelerator
	$(PYTEST) -m gpu || [ $$? -eq 5 ]

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is not Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@[ -x $(BIN)/python ] || { echo "setting up $(VENV): a few minutes, once"; $(PYTHON) -m venv $(VENV); }
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@
