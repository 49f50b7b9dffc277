# What a developer runs daily. `make` lists the targets; each first brings .venv up to date, which takes no time if it is.

PYTHON := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup fmt lint types test test-all process fuzz docs demo

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

setup: ## make or update .venv
	@./install.sh setup

fmt: setup ## format the sources, and mend what ruff can
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

lint: setup ## ruff, without changes
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types: setup ## mypy
	.venv/bin/mypy

test: setup ## unit and property tests; ARGS="tests/unit/test_docs.py", ARGS="-k permit"
	.ci/tests quick $(ARGS)

test-all: ## every check and every test, as in CI
	./install.sh test

process: setup ## tests with real processes, and faults; ARGS as above
	.ci/tests process $(ARGS)

fuzz: setup ## the random tests, with many more examples (FUZZ=1000)
	OMP_NUM_THREADS=1 CURTAIL_EXAMPLES=$(or $(FUZZ),1000) CURTAIL_FUZZ=$(or $(FUZZ),1000) CURTAIL_SCHEDULES=10000 \
	    .venv/bin/pytest -q -n auto --dist worksteal tests/property $$(grep -rlE '^from hypothesis|^import schemathesis' tests/unit)

docs: setup ## write docs/layout.md from the sources, and test the documentation
	$(PYTHON) docs/make_layout.py
	.venv/bin/pytest -q tests/unit/test_docs.py

demo: ## install, then show everything at work on this machine
	./install.sh demo
