# `make demo` and `make test` are all a newcomer needs; each makes its own .venv first.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
DATA ?=

.PHONY: demo test lint format clean

$(BIN)/.package: setup.cfg constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e .
	touch $@

$(BIN)/.demo: $(BIN)/.package
	$(PIP) -e '.[demo]'
	touch $@

$(BIN)/.test: $(BIN)/.package
	$(PIP) -e '.[test]'
	touch $@

$(BIN)/.lint: $(BIN)/.package
	$(PIP) -e '.[lint]'
	touch $@

demo: $(BIN)/.demo ## caption photographs with the bundled checkpoint; train a small captioner end to end, print its captions, save it and load it back
	$(BIN)/fusion-captioner demo $(if $(DATA),--data $(DATA))

test: $(BIN)/.test ## the whole suite, in two processes of one thread each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

lint: $(BIN)/.lint ## ruff (format and check) and mypy
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(BIN)/.lint
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist *.egg-info .demo
