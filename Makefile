# Every target sets up what it needs by itself; see CONTRIBUTING.md.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.NOTPARALLEL:

# Debian's own Python, and tools that only root has on its path, come before anything else
# that a shell may have been given; what is meant for another Python stays out.
export PATH := /usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin:$(PATH)
unexport PYTHONPATH PYTHONHOME PYTHONSTARTUP VIRTUAL_ENV

PYTHON := .venv/bin/python

.PHONY: help demo test unit lint format bench setup ryu setup-labs setup-code clean

help: ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 16

demo: setup-labs ## the main job on real switches, step by step (root)
	@$(PYTHON) -m mininet_labs.sandbox -- $(PYTHON) -m mininet_labs.demo

test: setup ## all tests: without switches, then on Open vSwitch under os-ken and Ryu (root)
	@$(PYTHON) scripts/run_tests.py

unit: setup-code ## the tests that need neither root nor a switch
	@$(PYTHON) scripts/run_tests.py unit

lint: setup-code ## style, types and the order of the floors
	@failed=; set -x; \
	$(PYTHON) -m ruff check . || failed=1; \
	$(PYTHON) -m ruff format --check . || failed=1; \
	$(PYTHON) -m mypy || failed=1; \
	$(PYTHON) .venv/bin/lint-imports || failed=1; \
	{ set +x; } 2>/dev/null; test -z "$$failed"

format: setup-code ## put the code into the project's form
	$(PYTHON) -m ruff check --fix-only .
	$(PYTHON) -m ruff format .

bench: setup ## the benchmarks, in their quick form (root)
	@$(PYTHON) -m tests.benchmarks all --quick

setup: ## Debian's packages and the virtual environments, for all targets (root)
	@bash scripts/setup.sh all

ryu: ## the environment in which the southbound process runs under Ryu
	@bash scripts/setup.sh ryu

setup-labs:
	@bash scripts/setup.sh labs

setup-code:
	@bash scripts/setup.sh code

clean: ## remove the environments and all caches
	rm -rf .venv .venv-ryu .build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	rm -rf pleach.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
