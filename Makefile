# gpulockd: `make run` starts everything, `make test` tests everything.
SHELL := /bin/bash
PYTHON ?= python3
ARGS ?=
WORKERS ?= 3
BIN := .venv/bin
# The suite starts hundreds of daemons; each would compile itself anew where this is set.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: audit help venv check test run bench demo faults soak test-performance test-gpu install-service dist deb docs clean vendor vendor-free

help:  ## say what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 28

# Installs again only when pyproject.toml, the lock, the Python or the place of the checkout changed.
venv:  ## make .venv with all that development needs
	@set -euo pipefail; \
	if ! $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then \
	  echo 'make: this Python cannot make environments; run: sudo apt-get install python3-venv' >&2; exit 1; \
	fi; \
	if ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
	  echo "make: gpulockd needs Python 3.11 or newer, this is $$($(PYTHON) -V); say which: make PYTHON=python3.12 venv" >&2; \
	  exit 1; \
	fi; \
	want=$$({ cat pyproject.toml requirements-dev.lock; $(PYTHON) -VV; pwd; } | sha256sum | cut -d ' ' -f 1); \
	if [ "$$(cat .venv/stamp 2>/dev/null)" = "$$want" ] && $(BIN)/python -c '' 2>/dev/null; then exit 0; fi; \
	echo 'make: setting up .venv (once, about half a minute)' >&2; \
	if $(BIN)/python -m pip --version >/dev/null 2>&1; then rm -f .venv/stamp; else $(PYTHON) -m venv --clear .venv; fi; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.lock; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .; \
	echo "$$want" > .venv/stamp

check: venv vendor-free  ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

test: venv  ## all tests, three at a time (WORKERS=0: one); what this machine lacks is skipped with its reason
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

run: venv  ## daemon and a small demo load; Ctrl-C stops all of it (ARGS="--no-demo": no load)
	@exec $(BIN)/python -m gpulockd.demo $(ARGS)

demo: run  ## the same as run

bench: venv  ## measure us beside the peers
	@exec $(BIN)/python -m bench $(ARGS)

HOME_OF_SERVICE ?= /opt/gpulockd

install-service:  ## install for all in /opt/gpulockd and run it under systemd, as root (ARGS: of gpulockd install-service)
	@set -euo pipefail; \
	if [ "$$(id -u)" != 0 ]; then echo 'make: this takes root: sudo make install-service' >&2; exit 1; fi; \
	if ! [ -x $(HOME_OF_SERVICE)/bin/pip ]; then $(PYTHON) -m venv $(HOME_OF_SERVICE); fi; \
	$(HOME_OF_SERVICE)/bin/pip install --quiet --disable-pip-version-check --upgrade '.[server]'; \
	$(HOME_OF_SERVICE)/bin/gpulockd install-service $(ARGS)

test-gpu: venv  ## the tests of cards, against a real GPU too (skipped with a reason where there is none)
	$(BIN)/python -m pytest -rs -s tests/hardware $(ARGS)

soak: venv  ## an hour of life with deaths in it: what must stay flat, stays flat (ARGS="--minutes 5")
	@$(BIN)/python -m bench soak $(ARGS)

test-performance: venv  ## the performance and stress tests at their documented sizes (minutes, on a quiet machine)
	$(BIN)/python -m pytest -rs -s -m 'performance or stress' tests/integration $(ARGS)

faults: venv  ## break it on purpose: every row of the fault matrix (ARGS="--row 18" for one)
	$(BIN)/python -m tests.faults --workers $(WORKERS) $(ARGS)

audit: venv  ## known vulnerabilities of the locked packages (needs PyPI and pip-audit)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check pip-audit; \
	timeout 180 $(BIN)/pip-audit --progress-spinner off --no-deps --disable-pip -r requirements-dev.lock; code=$$?; \
	if [ $$code = 124 ]; then echo 'make: the list of vulnerabilities cannot be reached; nothing is proven' >&2; fi; exit $$code

vendor:  ## fetch the page's chart library again through npm, and compare its digests
	@set -euo pipefail; \
	folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	(cd "$$folder" && npm pack --silent uplot@1.6.32 >/dev/null && tar xzf uplot-1.6.32.tgz); \
	cp "$$folder/package/dist/uPlot.iife.min.js" gpulockd/web/static/uplot.js; \
	cp "$$folder/package/dist/uPlot.min.css" gpulockd/web/static/uplot.css; \
	cp "$$folder/package/LICENSE" gpulockd/web/static/uplot.LICENSE; \
	sed -nE 's/^\| `([^`]+)` .*`([0-9a-f]{64})` \|$$/\2  \1/p' gpulockd/web/static/VENDORED.md \
	  | (cd gpulockd/web/static && sha256sum --check)

vendor-free:  ## the lock names packages only: no index, no host, no local path
	@if grep -nE '://|^-|@ |^\.|file:' requirements-dev.lock; then \
	  echo 'make: requirements-dev.lock must hold only name==version' >&2; exit 1; \
	fi

dist: venv  ## build wheel and sdist into dist/
	$(BIN)/python -m hatchling build -d dist

deb:  ## build the Debian package into dist/, with an environment of its own
	packaging/deb/build

docs: venv  ## write the reference anew and build docs/ into build/docs, without the network
	$(BIN)/python scripts/reference.py
	$(BIN)/mkdocs build --strict --quiet

clean:  ## remove .venv, caches and builds
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
