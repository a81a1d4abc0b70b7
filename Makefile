VENV   ?= .venv
PYTHON ?= python3
BIN    := $(abspath $(VENV))/bin
CORES  ?= 2

.PHONY: help env demo test test-full lint real clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

env: $(VENV)/.done  ## create the environment from pinned requirements

$(VENV)/.done: requirements.txt requirements-dev.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q uv==0.13.9 && \
	  UV_FIND_LINKS="$${PIP_FIND_LINKS:-}" $(BIN)/uv pip install -q --compile-bytecode --python $(BIN)/python -r requirements-dev.txt \
	  || $(BIN)/pip install -q -r requirements-dev.txt
	$(BIN)/pip install -q --no-deps -e .
	$(BIN)/pip check
	touch $@

DEMO = $(BIN)/snakemake --snakefile Snakefile --directory demo --configfile demo/config.yaml --cores $(CORES) \
       --set-threads embed_tiles=$(CORES) train_model=1 --keep-going --rerun-incomplete --show-failed-logs --quiet rules

demo: env  ## simulate a small paired cohort and run the whole workflow on it
	$(BIN)/python -m workflow.simulation demo/data --slide-root data/slides
	PATH="$(BIN):$$PATH" $(DEMO)
	@echo "The cohort is simulated. Report: demo/results/report.html"

PYTEST = PATH="$(BIN):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test: env  ## run the test suite
	$(PYTEST) -m "not full"

test-full: env  ## the suite with the long trials
	$(PYTEST)

lint: env  ## formatters and linters
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow/rules
	$(BIN)/snakemake --lint --directory demo --configfile demo/config.yaml

real: env  ## the main job on the real files beside the project, where they are present
	PATH="$(BIN):$$PATH" $(BIN)/python -m benchmarks.real_input

clean:  ## remove the demo's data and results
	rm -rf demo/data demo/results demo/logs demo/.snakemake demo/splits.tsv
