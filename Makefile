# Every target does its own set-up: it needs make and Python 3.11 to 3.14, nothing else.
#
#   make demo     real recordings -> shards -> a trained and evaluated model
#   make test     the tests; `make test ARGS="-k keys"` passes arguments on
#   make lint     ruff and pyright
#   make clean    remove the environment and the caches; results of the demo stay

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check

# Numba caches outlive an uninstall when they lie beside the source: keep them apart.
export NUMBA_CACHE_DIR := $(CURDIR)/.cache/numba

# The first Python that will do; `make PYTHON=/path/to/python3.12 demo` names another.
USABLE := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
CANDIDATES := python3 python3.13 python3.12 python3.11 python3.14 python
PYTHON ?= $(shell for python in $(CANDIDATES); do \
	"$$python" -c '$(USABLE)' >/dev/null 2>&1 && { echo "$$python"; break; }; done)

# A stamp is written last, so that an install that was cut off does not count, and holds the
# checkout's path: an environment that was copied along would run the code it was copied from.
INSTALLED := $(VENV)/.installed
IS_HERE := $(shell [ "$$(cat $(INSTALLED) 2>/dev/null)" = "$(CURDIR)" ] && echo yes)

.PHONY: help demo test lint clean elsewhere

help:
	@sed -n 's/^#   //p' Makefile

demo: $(INSTALLED)
	$(BIN)/melstream demo $(ARGS)

# -I: without it the current directory shadows the installed packages.
# One thread per process: OpenMP's threads wait for each other by spinning.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -Im pytest -n auto --maxprocesses 4 --dist worksteal $(ARGS)

lint: $(INSTALLED)-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/python -Im pyright --pythonpath $(BIN)/python

$(INSTALLED): pyproject.toml $(if $(IS_HERE),,elsewhere)
	@"$(PYTHON)" -c '$(USABLE)' >/dev/null 2>&1 || { \
		echo "melstream needs Python 3.11 to 3.14 with venv and pip;" \
			"$(if $(PYTHON),$(PYTHON) is not,none of these is: $(CANDIDATES))"; \
		echo "install one (Debian, Ubuntu: apt install python3 python3-venv)," \
			"or name one: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)"; \
		exit 1; } >&2
	@echo "installing into $(VENV), once; PyTorch and the rest take some minutes"
	"$(PYTHON)" -m venv $(VENV)
	$(PIP) --editable '.[test]'
	@echo "$(CURDIR)" > $@

$(INSTALLED)-dev: $(INSTALLED)
	$(PIP) --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) .cache .hypothesis .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
