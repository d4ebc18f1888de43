PYTHON ?= python3
# On Linux, torch 2.13.0 from the package index may bring CUDA; TORCH names another build.
TORCH ?= torch==2.13.0
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help demo test quality tables

help:            ## list the targets
	@grep -hE '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --upgrade pip
	$(BIN)/pip install -q "$(TORCH)"
	$(BIN)/pip install -q -e ".[dev]"
	@touch $@

demo: .venv/installed   ## train on the generated data set, print the table
	$(BIN)/accelerate launch recipes/sft.py

test: .venv/installed   ## run the tests
	$(BIN)/python -m pytest -q

quality: .venv/installed   ## lint and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

tables: .venv/installed   ## write the tables of README and docs from benchmarks/results
	$(BIN)/python benchmarks/tables.py
