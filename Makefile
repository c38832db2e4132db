# `make` without a target lists the targets.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.ONESHELL:
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
UV := $(or $(shell command -v uv),.tools/uv/bin/uv)
VENV := .venv/.synced
BIN := .venv/bin
HARNESS := PYTHONPATH=tests $(BIN)/python -m harness
# Several workers, each with a file of tests at a time, in the order of the command line.
PYTEST := $(BIN)/pytest --numprocesses=auto
EXAMPLE := examples/two-optimizers
CLAIMS := .finetune/claims

.PHONY: help setup run test lint types unit cluster e2e demo demo-down generate format clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  \033[1mmake %-10s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV) ## install the locked Python environment (and uv, if missing)

$(VENV): pyproject.toml uv.lock
	@if [ ! -x "$(UV)" ] && ! command -v uv >/dev/null; then
	  echo "==> uv is missing: installing it into .tools/uv"
	  $(PYTHON) -m venv .tools/uv && .tools/uv/bin/pip install --quiet uv
	fi
	echo "==> installing the locked environment (torch is large: about 5 GB the first time)"
	"$(UV)" sync --frozen --all-extras
	touch $(VENV)

run: $(VENV) ## train the example on this machine, without a cluster
	@$(BIN)/python $(EXAMPLE)/prepare.py $(CLAIMS)/digits
	$(BIN)/finetune run $(EXAMPLE)/job.yaml --set output.ifExists=Overwrite --fresh

test: $(VENV) ## lint, types, unit, cluster (real API server) and e2e (real node) tests
	@$(MAKE) --jobs --output-sync lint types
	$(HARNESS) setup
	$(PYTEST) tests/e2e tests/cluster tests/unit

lint: $(VENV) ## ruff and import-linter
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache | tail -n 4

types: $(VENV) ## mypy --strict
	@$(BIN)/mypy

unit: $(VENV) ## unit tests
	@$(PYTEST) tests/unit

cluster: $(VENV) ## tests on a real API server; compiles Kubernetes once (minutes)
	@$(PYTEST) tests/cluster

e2e: $(VENV) ## tests on a real node; as root on Debian or Ubuntu
	@$(HARNESS) setup
	$(PYTEST) tests/e2e

demo: $(VENV) ## train the example on Kubernetes: on a new node, or on the cluster CONTEXT=
	@$(HARNESS) setup
	PYTHONPATH=tests $(BIN)/python tests/demo.py up $(if $(CONTEXT),--context $(CONTEXT))

demo-down: $(VENV) ## remove the demo
	@PYTHONPATH=tests $(BIN)/python tests/demo.py down $(if $(CONTEXT),--context $(CONTEXT))

generate: $(VENV) ## generate the CRD and docs/reference.md
	@$(BIN)/python -m finetune_api.crd crds helm/finetune-operator/files/crds
	$(BIN)/python -m finetune_api.reference docs/reference.md

format: $(VENV) ## format, and apply ruff's fixes
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

clean: ## remove build products (not the cache in ~/.cache)
	rm -rf .venv .tools .finetune .mypy_cache .ruff_cache .pytest_cache .hypothesis dist
