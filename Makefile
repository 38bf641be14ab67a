# `make demo` and `make test` are all a newcomer needs; each makes its own .venv first.
# The first of these that is 3.11 or newer and can make a .venv is taken.
PYTHON ?= python3.11 python3.12 python3.13 python3.14 python3
FITS := import sys, ensurepip; sys.exit(sys.version_info < (3, 11))
FOUND = $(shell for python in $(PYTHON); do $$python -c '$(FITS)' 2>/dev/null && echo $$python && break; done)
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := constraints.txt
PIP := $(BIN)/pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),-c $(CONSTRAINTS),--upgrade --upgrade-strategy eager)
# two processes of one thread each
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadgroup
DATA ?=
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' fusion_captioner/__init__.py)

.PHONY: demo check test test-quick test-oldest test-newest conformance hostile lint format docs dist release clean

$(BIN)/python:
	$(or $(FOUND),$(error No Python from 3.11 on with ensurepip among: $(PYTHON). Install one, or name it: make PYTHON=/path/to/python3)) -m venv $(VENV)

$(BIN)/.package: setup.cfg $(CONSTRAINTS) | $(BIN)/python
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

$(BIN)/.dist: $(BIN)/.package
	$(PIP) -e '.[dist]'
	touch $@

$(BIN)/.docs: $(BIN)/.package
	$(PIP) -e '.[docs]'
	touch $@

demo: $(BIN)/.demo ## caption photographs with the bundled checkpoint; train a small captioner end to end, print its captions, save it and load it back
	$(BIN)/fusion-captioner demo $(if $(DATA),--data $(DATA))

check: lint test-quick ## lint, and every test that is not slow

test: $(BIN)/.test ## the whole suite
	$(PYTEST)

test-oldest: ## the tests that are not slow on the oldest versions that setup.cfg allows (several GB of packages, in a .venv of their own)
	$(MAKE) VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt test-quick

test-newest: ## the same on the newest versions that the index has
	rm -f .venv-newest/bin/.package .venv-newest/bin/.test
	$(MAKE) VENV=.venv-newest CONSTRAINTS= test-quick

test-quick: $(BIN)/.test
	$(PYTEST) -m 'not slow'

hostile: $(BIN)/.test ## the long form of tests/hostile: mutated images, special files, kills at random moments (half an hour)
	OMP_NUM_THREADS=1 $(BIN)/python tests/hostile/long_run.py

conformance: $(BIN)/.test ## transformers' own common tests, from its source distribution, which pip fetches once
	FUSION_CAPTIONER_CONFORMANCE=1 $(PYTEST) -p no:warnings tests/conformance

lint: $(BIN)/.lint ## ruff (format and check) and mypy
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --num-workers 2

format: $(BIN)/.lint
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(BIN)/.docs ## the documentation as a site, in site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

dist: $(BIN)/.dist ## wheel and sdist, in dist/
	rm -rf dist build
	$(BIN)/python -m build --outdir dist
	$(BIN)/twine check --strict dist/*

release: ## publish the version of fusion_captioner/__init__.py: tests, wheel and sdist, tag, upload
	@test -z "$$(git status --porcelain)" || { echo "commit your changes first: git status shows them" >&2; exit 1; }
	@grep -q '^## $(VERSION)' CHANGELOG.md || { echo "CHANGELOG.md has no section '## $(VERSION)'; name the version there" >&2; exit 1; }
	$(MAKE) lint test dist
	git tag v$(VERSION)
	$(BIN)/twine upload dist/*
	git push origin v$(VERSION)

clean:
	rm -rf $(VENV) .venv-oldest .venv-newest build dist site *.egg-info .demo
