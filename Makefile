# make reproduce [PROFILE=smoke|quick|best|paper] [DATA=name-or-path] [RUN=name]   make test   make test-slow   make lint   make audit   make clean
PYTHON ?= python3
VENV ?= .venv
PROFILE ?= quick
DATA ?= auto
RUN ?= reproduce
SEED ?= 0
BIN := $(VENV)/bin

.PHONY: reproduce test test-slow lint audit clean

reproduce: $(VENV)/ready
	$(BIN)/python -m kerasgan run "$(RUN)" --profile "$(PROFILE)" --data "$(DATA)" --seed "$(SEED)"

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --cov --cov-report=term --durations=15

test-slow: $(VENV)/ready-test
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/ready-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/bandit --quiet --recursive kerasgan

# Known holes of the installed libraries, where their data base can be reached.
audit: $(VENV)/ready-test
	$(BIN)/pip-audit --local --timeout 5 --progress-spinner off

clean:
	rm -rf "$(VENV)" .pytest_cache .ruff_cache .coverage *.egg-info

$(VENV)/ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv "$(VENV)"
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/ready-test: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@
