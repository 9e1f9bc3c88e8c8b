# Everything runs in .venv, which the first target that needs it makes.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
export RAY_USAGE_STATS_ENABLED := 0
export NO_ALBUMENTATIONS_UPDATE := 1
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: demo test test-fast test-rest test-all check format bench docs clean

demo: .venv/installed  ## train on real digits, one Ray worker per source domain
	$(BIN)/difc-ray train

test: .venv/installed  ## the first tier: a proof of every promise
	$(BIN)/python -m pytest -q -n 3 -m core

test-rest: .venv/installed  ## what the first tier leaves out
	$(BIN)/python -m pytest -q -n 2 -m "not core"

test-all: .venv/installed  ## the whole test suite
	$(BIN)/python -m pytest -q -n 2

test-fast: .venv/installed  ## no Ray, no server, no subprocess
	$(BIN)/python -m pytest -q -n 2 -m "not (ray or mlflow or process or slow)"

check: .venv/installed  ## what CI checks besides the tests: format, lint, types, import layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/installed  ## the figures of docs/results
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/rules.py
	$(BIN)/python benchmarks/sweep.py --asha
	$(BIN)/python benchmarks/data.py
	$(BIN)/python benchmarks/faults.py
	$(BIN)/python benchmarks/transport.py --rounds 3
	$(BIN)/python benchmarks/alignment.py
	$(BIN)/python benchmarks/soak.py

docs: .venv/docs  ## the documentation as HTML in build/docs; a warning is an error
	$(BIN)/sphinx-build -q -W --keep-going -b html docs build/docs

clean:
	rm -rf .venv runs

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "difc_ray needs Python 3.11 or newer, found %s" % sys.version'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

.venv/docs: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@
