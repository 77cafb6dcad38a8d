# `make` lists the targets. Each makes the environment first; nothing else needs to be installed than Python.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
EXTRAS ?= dev
LOWEST := .venv-lowest

.DEFAULT_GOAL := help
.PHONY: help env demo check format test test-lowest test-parity test-faults test-night clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

env: $(VENV)/.$(EXTRAS) ## make the environment in .venv

$(VENV)/.$(EXTRAS): pyproject.toml .constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed, this is " + sys.version) if sys.version_info < (3, 10) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c .constraints.txt -e '.[$(EXTRAS)]'
	touch $@

demo: EXTRAS = cpu
demo: ## caption photos that come with the project, with the model that comes with it
	$(MAKE) env EXTRAS=cpu
	$(BIN)/python -m jobs.caption tests/photos .demo --show 8 \
		--include band.jpg --include palace.jpg --include shepherd_dog.jpg

check: env ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: env ## rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: env ## all tests but the slow ones
	$(BIN)/python -m pytest

test-lowest: ## all tests but the slow ones, with the lowest versions of all packages that pyproject.toml allows
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(LOWEST)/bin/uv pip compile --quiet pyproject.toml --extra test --resolution lowest-direct -o $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c $(LOWEST)/constraints.txt -e '.[test]'
	$(LOWEST)/bin/python -m pytest

test-parity: env ## equality with independent implementations (needs Java)
	$(BIN)/python -m pytest -m parity

test-faults: env ## kill, starve and mislead the jobs on a real S3 server and a cluster (long)
	$(BIN)/python -m pytest -m slow tests/faults

test-night: env ## a hundred faults of the caption job at random moments, by seed (hours; as root)
	$(BIN)/python -m tests.faults.night --faults 100 --seed 0

clean: ## remove what the targets made, the environment included
	rm -rf $(VENV) $(LOWEST) .demo build dist *.egg-info
