# Every target has a ## line; `make help` prints them, and CI runs the same targets.
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Two workers, each with a stack of its own: tests mostly wait.
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-unit test-integration test-e2e lint types imports proto proto-check fmt docs mutants chart-test compose-test bench-access bench-audit bench-identity bench-mesh bench-scaling bench-secrets soak-audit soak-mesh soak-secrets rolling drill ci-deps lock clean

help: ## Print this list
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/.ready node_modules/.ready ## Install everything, from the locks and by hash

.venv/.ready: requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "setup: Python packages (requirements.lock)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

node_modules/.ready: .venv/.ready package-lock.json
	@echo "setup: backends of the embedded stack (package-lock.json)"
	@npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

demo: setup ## Start the embedded stack and play the main job over HTTPS
	@$(BIN)/python -m tests.e2e.demo

test: setup ci-deps lint types imports proto-check test-unit test-integration test-e2e ## Everything that must be green

test-unit: setup ## Rules, vectors and properties: no backend, seconds
	$(PYTEST) -m unit

test-integration: setup ## Promises and races on the real backends
	$(PYTEST) -m integration

test-e2e: setup ## Stories, threats and faults over HTTPS against the six processes
	$(PYTEST) -m e2e

lint: setup ## ruff: rules and format
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .

types: setup ## mypy, strict
	$(BIN)/mypy

imports: setup ## Import rules: services meet only through proto/, rules do no I/O
	$(BIN)/lint-imports --no-logo

fmt: setup ## Format the code
	$(BIN)/ruff check --quiet --fix .
	$(BIN)/ruff format --quiet .

proto: setup ## Generate the protobuf stubs and lint the contracts
	$(BIN)/python -m tools.protogen

proto-check: setup ## Say whether the committed stubs are current, and go together with the last release
	$(BIN)/python -m tools.protogen --check

docs: setup ## Generate docs/errors.md, docs/scaling.md, the README and the schema of the chart, alerts and dashboards
	$(BIN)/python -m libs.errors > docs/errors.md
	$(BIN)/python tools/chart.py
	$(BIN)/python -m tools.alerts
	$(BIN)/python -m tools.scaling

chart-test: setup ## Render the chart with every values file and hold its objects against what they must be
	$(BIN)/python -m pytest -q tests/chart

compose-test: setup ## Build and start the system in containers, play the demo, hold what they can do; needs a Docker daemon
	@$(BIN)/python -m tests.compose

mutants: setup ## Remove one control at a time in a scratch copy and see its attack succeed
	$(BIN)/python -m tools.mutants

bench-access: setup ## Sessions issued against the relation check alone, about 2 minutes
	$(BIN)/python -m bench.access

bench-audit: setup ## Bars of the record against raw inserts, a bare echo and bare hashes, about 5 minutes
	$(BIN)/python -m bench.audit

bench-identity: setup ## Bars of identity against its own backends and the bare library, about 5 minutes
	$(BIN)/python -m bench.identity

bench-mesh: setup ## Bars of the signed event bus against its own backends, about 15 minutes
	$(BIN)/python -m bench.mesh

bench-scaling: setup ## What a call costs in each process and what that grows with, for docs/scaling.md, about 10 minutes
	$(BIN)/python -m bench.scaling

bench-secrets: setup ## Granted reads through the edge against the calls that they are made of, about 3 minutes
	$(BIN)/python -m bench.secrets

soak-audit: setup ## Append for SOAK_S seconds (300) through two replicas that are killed at random, and PostgreSQL with them
	$(BIN)/python -m bench.soak_audit $(or $(SOAK_S),300)

soak-mesh: setup ## Publish and listen for SOAK_S seconds (300) while processes are killed at random
	$(BIN)/python -m bench.soak_mesh $(or $(SOAK_S),300)

soak-secrets: setup ## Read secrets for SOAK_S seconds (600) while one process after the other is killed
	$(BIN)/python -m bench.soak_secrets $(or $(SOAK_S),600)

rolling: setup ## Roll each service in turn under the load of the story, about 4 minutes
	$(BIN)/python -m bench.rolling

drill: setup ci-deps ## Make a FAULT (kill, hang, backend) at a SERVICE and see its alert fire, no other, and end (audit, kill)
	$(BIN)/python -m bench.drill $(or $(SERVICE),audit) $(or $(FAULT),kill)

ci-deps: ## Debian packages that tests need, where they are not there yet: nginx and prometheus (needs root)
	@PATH="$$PATH:/usr/sbin"; { command -v nginx && command -v promtool; } >/dev/null || \
		{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends nginx-light prometheus >/dev/null; }

lock: ## Resolve requirements.lock again (needs uv on the path)
	uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --quiet --output-file requirements.lock

clean: ## Remove what `make` made; the embedded stack's state goes with `plexctl dev reset`
	rm -rf .venv node_modules build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
