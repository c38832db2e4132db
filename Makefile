# What people do here, one word each; `make` alone lists them.
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
EXAMPLE := examples/two-optimizers
CLAIMS := .finetune/claims

.PHONY: help setup run test lint types unit cluster e2e demo demo-down generate format clean

help: ## list what can be done
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  \033[1mmake %-10s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV) ## the Python environment (installs uv next to the project when it is missing)

$(VENV): pyproject.toml uv.lock
	@if [ ! -x "$(UV)" ] && ! command -v uv >/dev/null; then
	  echo "==> uv is missing: installing it into .tools/uv"
	  $(PYTHON) -m venv .tools/uv && .tools/uv/bin/pip install --quiet uv
	fi
	echo "==> installing the locked environment (torch is large: about 5 GB the first time)"
	"$(UV)" sync --frozen --all-extras
	touch $(VENV)

run: $(VENV) ## the main job on this machine, without a cluster
	@$(BIN)/python $(EXAMPLE)/prepare.py $(CLAIMS)/digits
	$(BIN)/finetune run $(EXAMPLE)/job.yaml --set output.ifExists=Overwrite --fresh

test: lint types ## everything: lint, types, unit, cluster (real API server), e2e (real node)
	@$(HARNESS) setup
	$(BIN)/pytest tests/unit tests/cluster tests/e2e

lint: $(VENV) ## ruff and the import contracts
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache | tail -n 4

types: $(VENV) ## mypy, strict
	@$(BIN)/mypy

unit: $(VENV) ## unit tests: seconds, no cluster
	@$(BIN)/pytest tests/unit

cluster: $(VENV) ## tests against a real API server; builds Kubernetes once (minutes)
	@$(BIN)/pytest tests/cluster

e2e: $(VENV) ## tests on a real node; as root on Debian or Ubuntu
	@$(HARNESS) setup
	$(BIN)/pytest tests/e2e

demo: $(VENV) ## the main job on Kubernetes: a node of its own, or the cluster named by CONTEXT=
	@$(HARNESS) setup
	PYTHONPATH=tests $(BIN)/python tests/demo.py up $(if $(CONTEXT),--context $(CONTEXT))

demo-down: $(VENV) ## take the demo down
	@PYTHONPATH=tests $(BIN)/python tests/demo.py down $(if $(CONTEXT),--context $(CONTEXT))

generate: $(VENV) ## write what is generated: the CRD and its reference
	@$(BIN)/python -m finetune_api.crd crds helm/finetune-operator/files/crds
	$(BIN)/python -m finetune_api.reference docs/reference.md

format: $(VENV) ## format and fix what ruff can fix
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

clean: ## remove what was built here (not the cache shared between checkouts)
	rm -rf .venv .tools .finetune .mypy_cache .ruff_cache .pytest_cache .hypothesis dist
