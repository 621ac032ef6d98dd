# Everything a newcomer needs; `make help` lists it. Safe to repeat: a step that is done is not done again.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check
ifneq ($(wildcard ../shared/assets),)
export NUPES_ASSETS ?= $(abspath ../shared/assets)
endif
PYTEST_WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup demo up test lint format benchmark bench-env clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "NUPES needs Python 3.11 or newer; try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# What running the service needs.
$(VENV)/.runtime: pyproject.toml | $(BIN)/python
	@echo "Installing NUPES into $(VENV) (a few minutes the first time) ..."
	$(PIP) -e '.[core,server]'
	@touch $@

# What tests and linters need on top.
$(VENV)/.dev: $(VENV)/.runtime
	$(PIP) -e '.[core,server,test,lint]'
	@touch $@

setup: $(VENV)/.dev ## Make .venv with everything
demo: $(VENV)/.runtime ## Quantize the bundled model through the service, from upload to a loaded artifact
	$(BIN)/python examples/demo.py

up: $(VENV)/.runtime ## Start the service on this machine and print its URL and key
	$(BIN)/nupes up

test: $(VENV)/.dev ## Run the whole test suite, on SQLite + folders and on PostgreSQL + Redis
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist worksteal $(PYTEST_ARGS)

lint: $(VENV)/.dev ## Check style, types, import rules and container files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/yamllint --strict docker-compose.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml
	$(BIN)/hadolint Dockerfile
	@if docker compose version >/dev/null 2>&1; then docker compose --env-file env.example config --quiet; fi

format: $(VENV)/.dev ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The peers bring their own ideas of which torch to install; they live apart, with torch pinned.
bench-env: .venv-bench/.done ## Make .venv-bench, the environment of the side-by-side benchmarks
.venv-bench/.done: benchmarks/requirements-peers.txt pyproject.toml
	[ -x .venv-bench/bin/python ] || $(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -e '.[core]' -r benchmarks/requirements-peers.txt
	@touch $@

benchmark: bench-env ## Run the side-by-side benchmarks and rewrite benchmarks/results
	.venv-bench/bin/python benchmarks/datafree.py
	.venv-bench/bin/python benchmarks/quality.py
	.venv-bench/bin/python benchmarks/encoder.py

clean: ## Remove the environments and everything the demo made
	rm -rf $(VENV) .venv-bench .bench-cache .demo build *.egg-info
