# `make repro` runs the whole pipeline, `make test` all checks; both set up what they need first.
#
# PYTHON=python3.12     the interpreter of a new .venv (default: python3, or what .venv has)
# TORCH_BACKEND=cpu     another build of torch: cpu, cu130, auto, … (default: PyPI's, for CUDA)
# TEST_PROCESSES=2      how many run the tests; each takes up to 3 GiB of memory

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# In each recipe rather than exported: set-up has to find the system's python3, not .venv's.
VENV := PATH="$(CURDIR)/.venv/bin:$$PATH"
TEST_PROCESSES ?= 2
PYTEST := pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

.PHONY: help set-up repro test test-all lint format size lock clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

set-up: ## install everything into .venv, system packages included
	@./setup.sh

repro: set-up ## run the pipeline of dvc.yaml: prepare, teacher, label, train, evaluate, audit, report
	@$(VENV) dvc repro

test: lint ## lint, types, arrows, spelling, and the tests but the nightly ones
	@$(VENV) $(PYTEST) -m "not nightly"

test-all: lint ## also packaging, virtual environments, browsers, servers, tutorials, long kill runs
	@$(VENV) $(PYTEST)

lint: set-up ## lint, format, types, who imports whom, and spelling
	@$(VENV) ruff check .
	@$(VENV) ruff format --check .
	@$(VENV) mypy
	@$(VENV) lint-imports --no-cache --no-logo pyproject.toml
	@$(VENV) codespell

size: set-up ## files, code lines, docstring lines and longest function of each folder
	@$(VENV) python bench/size.py

format: set-up ## rewrite the code as ruff wants it
	@$(VENV) ruff check --fix .
	@$(VENV) ruff format .

lock: set-up ## choose the newest versions again and write the lock files
	@$(VENV) uv pip compile --universal --python-version 3.11 --extra dev --generate-hashes \
	    --no-annotate --custom-compile-command 'make lock' --upgrade --quiet \
	    --output-file requirements.lock setup.cfg
# Alone: torchattacks, which bench/training.py is measured against, pins a requests of 2020.
	@echo torchattacks==3.5.1 | $(VENV) uv pip compile --universal --python-version 3.11 \
	    --no-deps --generate-hashes --no-annotate --custom-compile-command 'make lock' --quiet \
	    --output-file requirements-bench.lock -

clean: ## remove .venv and caches; results in data/ stay
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
