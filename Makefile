# `make` lists the targets.  The environment is .venv; nothing outside this folder is changed, but for download caches.

.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c

# The first Python that is new enough; `make PYTHON=/path/to/python3.12 venv` chooses another one.
PYTHON ?= $(shell for each in python3.11 python3.12 python3.13 python3; do \
	if $$each -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then echo $$each; break; fi; done)
VENV := .venv
BIN := $(VENV)/bin
LOCK := $(wildcard requirements.lock)
WORKERS ?= 2
# What was compiled once is compiled again by none of the thousand processes that tests start.
unexport PYTHONDONTWRITEBYTECODE
# Most tests wait for servers: four at a time, each with servers of its own, keep two cores busy.
# In the order of their folders: the slowest files come first, and the quick ones fill the gaps at the end.
PYTEST := $(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder

# What a JVM takes over from one that ran before, and what pytest makes of the tests' assertions.
LEARN := { $(BIN)/python -m tests.fixtures.java; $(BIN)/python -m pytest --collect-only -q; }

.PHONY: help venv up down test test-long checks learn tools lint types bench bench-relays soak pictures schema reference docs dist lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(VENV)/ready ## Make .venv with everything in it (again only when pyproject.toml or the lock changes)

$(VENV)/ready: pyproject.toml $(LOCK)
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null || \
		{ echo "outbox-streams needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 venv" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@.ci/install $(BIN)/python
	@touch $@

up: venv ## Start PostgreSQL, Kafka, relay, two workers and the demo, and say where the pages are; Ctrl-C stops everything
	@exec $(BIN)/streams up --demo --workers $(WORKERS)

down: venv ## Stop what `make up` or `streams up --detach` started here
	@$(BIN)/streams down

test: checks ## Lint, types and tests: a quarter of an hour on two cores, most of it waiting for servers
	$(PYTEST) -m 'not long'

test-long: MORE = buildah:buildah debootstrap:debootstrap
test-long: checks ## The same with the long tests, in full counts: much longer
	$(PYTEST)

checks: venv  # side by side: most of it waits for a network or for one core
	@$(MAKE) --no-print-directory --jobs 4 learn lint types tools MORE='$(MORE)'

learn: venv
	@mkdir -p build && { $(LEARN) > build/learn.log 2>&1 & }  # while types are checked

tools: ## Install Debian's programs that some tests need, where they are missing
	@missing=; for each in chromium:chromium promtool:prometheus pgbouncer:pgbouncer $(MORE); do \
		command -v $${each%:*} > /dev/null || missing="$$missing $${each#*:}"; done; \
	test -z "$$missing" || \
		{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing > /dev/null; } || \
		echo "missing, and only root can install it here:$$missing; its tests are left out, or fail in CI" >&2

lint: venv ## Style and the errors that a linter sees
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: venv ## Types, strictly
	$(BIN)/mypy

bench: venv ## Measure throughput, latency and memory; prints a table
	$(BIN)/python -m benchmarks

bench-relays: venv ## Measure the relays against real Debezium: rates, latency, WAL
	$(BIN)/python -m benchmarks.relays

soak: venv ## Have a deployment in trouble work for an hour, and say what grows
	$(BIN)/python -m benchmarks.soak

pictures: venv ## Take the pictures of the README anew
	WRITE_PICTURES=1 $(BIN)/python -m pytest -q tests/browser -k pictures

schema: venv ## Write db/schema.sql anew: what the migrations make
	WRITE_SCHEMA=1 $(BIN)/python -m pytest -q tests/integration/test_migrations.py -k schema_file

reference: venv ## Write the pages of docs/reference/ anew that come from the code
	WRITE_REFERENCE=1 $(BIN)/python -m pytest -q tests/unit/test_reference.py

docs: venv ## Build the docs as a site into build/site; `.venv/bin/mkdocs serve` shows it while you write
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

dist: venv ## Build sdist and wheel into dist/ and check them; with licences and bill of materials
	@.ci/dist

lock: ## Write requirements.lock anew: the newest versions that pyproject.toml allows
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip --disable-pip-version-check install --editable '.[test]'
	build/lock/bin/python -m pip freeze --exclude-editable > build/requirements.lock
	mv build/requirements.lock requirements.lock
	rm -rf build/lock

clean: ## Remove .venv, the dev services' data and all caches (stops them first)
	@if test -x $(BIN)/streams; then $(BIN)/streams down; fi
	rm -rf $(VENV) .dev build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
