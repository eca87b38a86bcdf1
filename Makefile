# `make demo` and `make test` set everything up on a bare machine with Python >= 3.10; the rest is for developers.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo
TESTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

LABEL_PORT ?= 8000
ORTHANC_PORT ?= 8042

.DEFAULT_GOAL := help
.PHONY: help install label-install label demo test test-slow test-all docs lint bench build clean

help:  ## list these commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/covid-monai: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

install: $(BIN)/covid-monai  ## make .venv and install everything into it

# MONAI Label and pydicom-seg name older packages, and torchvision, as their needs: what they really import is the extra
$(VENV)/label-installed: $(BIN)/covid-monai setup.cfg
	$(BIN)/python -m pip install --quiet --editable '.[label]'
	$(BIN)/python -m pip install --quiet --no-deps monailabel==0.8.5 pydicom-seg==0.4.1
	@touch $@

label-install: $(VENV)/label-installed  ## put MONAI Label into .venv

label: label-install  ## Orthanc with two synthetic patients, and MONAI Label with OHIF on it
	$(BIN)/python -m covid_monai.label.demo label-demo $(LABEL_PORT) $(ORTHANC_PORT)

demo: install  ## analyse a synthetic CT with the shipped model, compare with its known truth
	rm -rf $(DEMO)
	$(BIN)/covid-monai demo --output $(DEMO)

test: install  ## quick tests, under 5 minutes on 2 cores
	$(TESTS) -m "not slow"

test-slow: install  ## the other tests, about a quarter of an hour
	$(TESTS) -m slow

test-all: test test-slow  ## all tests

docs: install  ## build the documentation; warnings are errors
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html
	@echo "documentation: docs/_build/html/index.html"

lint: install  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy covid_monai transforms

bench: install  ## speed and memory, as tables in bench.md
	for each in machine runtimes analyse training_step processes; do \
	    echo "## $$each" && echo && $(BIN)/python benchmarks/$$each.py && echo || exit 1; \
	done > bench.md
	cat bench.md

build: install  ## wheel and source archive
	$(BIN)/python -m build --quiet

clean:  ## remove what these commands made, but not .venv
	rm -rf build dist docs/_build $(DEMO)
