# Each target does all of its own set-up, with plain pip, in .venv.
PYTHON ?= python3
BIN := .venv/bin
PLUGINS := $(patsubst %/pyproject.toml,%,$(sort $(wildcard plugins/*/pyproject.toml)))
SOURCES := pyproject.toml constraints.txt $(PLUGINS:%=%/pyproject.toml)
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test quick affected lint format docs bench clean help

demo: .venv/demo  ## train X-Llama on the built-in text and generate from it
	$(BIN)/axon train xllama-tiny

test: .venv/test  ## run every test; those that need data are skipped unless AXON_DATA_DIR is set
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -q

quick: .venv/test  ## run the tests without those marked slow, which take over ten seconds each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -q -m "not slow"

affected: .venv/test  ## run the tests of what differs from BASE (main), and of what depends on it
	OMP_NUM_THREADS=1 $(BIN)/python tools/affected.py $(BASE) -- -n 2 --dist worksteal -q

lint: .venv/test  ## ruff, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/pyright -p plugins

format: .venv/test  ## apply ruff's fixes and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/docs  ## build docs/_build/html, offline; a warning is an error
	$(BIN)/python docs/generate.py
	$(BIN)/python -m sphinx -W --keep-going -n -q -c docs -d docs/_build/doctrees docs/_build/source docs/_build/html

bench: .venv/test  ## print the measurements of benchmarks/
	for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

clean:  ## remove what the other targets made, except runs/
	rm -rf .venv .venv-wheels dist

help:  ## print this list
	@sed -n 's/^\([a-z]*\):.*  ## \(.*\)/\1	\2/p' Makefile | while IFS='	' read -r target about; do \
		printf '%-9s %s\n' "$$target" "$$about"; done

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/demo: .venv/bin/python $(SOURCES)
	$(BIN)/python -m pip install -q "hatchling>=1.27" "editables>=0.5"  # here, and not in an environment for each project
	$(BIN)/python -m pip install -q --no-build-isolation -e ".[plot]" $(addprefix -e ,$(PLUGINS))
	touch $@

.venv/test .venv/docs: .venv/%: .venv/demo
	$(BIN)/python -m pip install -q --no-build-isolation -e ".[plot,$*]"
	touch $@
