# make repro   sets up and runs the pipeline: download, tokenize, train, evaluate, sample, report
# make test    sets up and runs the tests
# make check   formatter, linter and type checker
# make lock    pins the newest versions that requirements.in and requirements-dev.in allow

SHELL := /bin/bash
PYTHON ?= python3
BIN := $(CURDIR)/.venv/bin
export PATH := $(BIN):$(PATH)

.PHONY: repro test test-fast check format setup setup-dev lock

repro: setup
	dvc repro

# One process per core, at most four; the tests of a file run in one process.
test: setup-dev
	python -m pytest -n auto --maxprocesses 4 --dist loadfile

test-fast: setup-dev
	python -m pytest -m "not slow"

check: setup-dev
	ruff format --check .
	ruff check .
	mypy

format: setup-dev
	ruff format .
	ruff check --fix .

setup: .venv/.installed
setup-dev: .venv/.installed-dev

.venv/.installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version) if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv .venv
	python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/.installed-dev: .venv/.installed requirements-dev.txt
	python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

# Torch's own needs differ between machines (its CUDA build brings many packages, each pinned by torch itself), so they
# are left to torch; "+cpu" is cut from its version for the same reason.
lock:
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet -r requirements.in
	.venv-lock/bin/pip freeze | grep -v -E '^(nvidia-[^m]|triton|cuda|pip|setuptools)' | sed 's/+cpu$$//' > requirements.txt
	.venv-lock/bin/pip install --quiet -r requirements-dev.in
	.venv-lock/bin/pip freeze | grep -v -E '^(nvidia-[^m]|triton|cuda|pip|setuptools)' | sed 's/+cpu$$//' \
		| grep -v -x -F -f requirements.txt | (echo "-r requirements.txt"; cat) > requirements-dev.txt
	rm -rf .venv-lock
