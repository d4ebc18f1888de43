PYTHON ?= python3
# On Linux, torch 2.13.0 from the package index may bring CUDA; TORCH names another build, and a torch
# that is installed stays.
TORCH ?= torch==2.13.0
BIN := .venv/bin
PYTEST := -m pytest -q -n logical --maxprocesses 4 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo test mixins floors quality tables docs

help:            ## list the targets
	@grep -hE '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --upgrade pip
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/pip install -q "$(TORCH)"
	$(BIN)/pip install -q -e ".[dev]"
	@touch $@

# On the GPU if there is one, else on all cores. How long it takes is read from our own result.
ABOUT := import json; r = json.load(open("benchmarks/results/toyshop-ttds-seed0.json")); \
	print("It took", round(r["seconds"] / 60), "minutes on", r["hardware"] + "; more cores take less.")

demo: .venv/installed   ## train on the generated data set, print the table
	@echo "Trains a recommender on a generated shop, measures it beside baselines and saves it in"
	@echo "outputs/demo. Downloads no data and no model."
	@$(BIN)/python -c '$(ABOUT)'
	$(BIN)/python recipes/sft.py

test: .venv/installed   ## run the tests
	$(BIN)/python $(PYTEST)

mixins: .venv/installed   ## run transformers' own tests of a model, fetched, on ours
	$(BIN)/python -m tests.mixins

# Pip takes newest versions only; uv takes lowest. It keeps the torch that is there.
floors:          ## run the tests on the lowest versions that pyproject.toml names, torch aside
	rm -rf .venv-floors
	$(PYTHON) -m venv .venv-floors
	.venv-floors/bin/pip install -q "$(TORCH)" uv
	.venv-floors/bin/uv pip install -q --python .venv-floors/bin/python \
		--resolution lowest-direct -e ".[dev]"
	.venv-floors/bin/python $(PYTEST)

quality: .venv/installed   ## lint and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

tables: .venv/installed   ## write tables and plots of README and docs from benchmarks/results
	$(BIN)/python -m benchmarks.tables
	$(BIN)/python -m benchmarks.full_tables
	$(BIN)/python -m benchmarks.plots

docs: .venv/installed    ## build the site into outputs/site; a dead link fails
	$(BIN)/mkdocs build --strict
