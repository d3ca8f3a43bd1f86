# make quickstart   install if needed, then the main job offline: train, evaluate, report
# make install   a virtual environment with plaudit and its test tools
# make test      install if needed, then every test
# make test-fast tests that load no torch, within a minute
# make check     style, types and import direction
# make check-page   types of the page, with a TypeScript compiler from npm
# make docs      regenerate docs/reference and the recipe key table
# make site      build the documentation site into site/; every warning fails
# make site-serve  show the site on http://127.0.0.1:8001 while you write
# make dist      build the wheel and the sdist into dist/, and test them
# make test-dist test a wheel and an sdist that are built for the test alone

PYTHON ?= python3
VENV ?= .venv
# Two workers, one thread each: most tests wait for imports and processes.
PYTEST_ARGS ?= --numprocesses 2 --dist worksteal
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RUNNABLE := $(VENV)/.runnable
OUT ?= runs/quickstart

.DEFAULT_GOAL := help
.PHONY: help quickstart install test test-fast check check-page format docs site site-serve dist test-dist clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

# The stamp keeps later calls from installing again until what is asked for changes.
$(RUNNABLE): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "plaudit needs Python 3.11 or newer; name one with: make PYTHON=python3.12 ..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing plaudit and what it runs on into $(VENV); this takes a few minutes once."
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(STAMP): $(RUNNABLE)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,dev,docs]'
	@touch $@

quickstart: $(RUNNABLE)
	$(BIN)/plaudit quickstart --out $(OUT)

install: $(STAMP)

test: $(STAMP)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-fast: $(STAMP)
	$(BIN)/python -m pytest --fast $(PYTEST_ARGS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --quiet tests/test_structure.py

# The page ships as it is written; only this check needs Node and a registry.
check-page:
	npx --yes --package typescript@5.9 tsc --project jsconfig.json

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)
	$(BIN)/python scripts/generate_recipe_keys.py
	$(BIN)/python scripts/generate_reference.py

# --quiet would hide warnings from strict mode. The variable silences a notice about MkDocs 2.
site: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

site-serve: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --no-strict --dev-addr 127.0.0.1:8001

dist: $(STAMP)
	rm -rf build dist
	$(BIN)/python -m build
	PLAUDIT_DIST=dist $(BIN)/python -m pytest tests/test_distribution.py

test-dist: $(STAMP)
	$(BIN)/python -m pytest tests/test_distribution.py

clean:
	rm -rf build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis
