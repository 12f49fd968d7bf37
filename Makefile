# The commands a newcomer needs. `make demo` shows the tool, `make test` checks it, `make install` only installs it.
PYTHON ?= python3
BIN := .venv/bin
DEMO := demo
MINUTES ?= 60

# Or every process that the tests start would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install demo test lint bench bench-long clean

help:
	@echo "make install   .venv with the llmd4rec command"
	@echo "make demo      from a raw log to a report, on MovieLens-100K (five minutes)"
	@echo "make test      ruff, mypy, import-linter, pytest"
	@echo "make lint      all but pytest"
	@echo "make bench     every stage against the machine and other libraries (20 minutes)"
	@echo "make bench-long DATA=folder MINUTES=60   training time to equal accuracy (hours)"
	@echo "make lock, make audit, make sbom   pinned hashes, known advisories, bill of materials (SECURITY.md)"
	@echo "make clean     remove .venv and the demo's results"

.venv/.python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	@echo "Making .venv"
	@$(PYTHON) -m venv .venv
	@touch $@

.venv/.installed: .venv/.python pyproject.toml constraints.txt supply/install.py
	@echo "Installing llmd4rec and what it needs (a minute or two)"
	@$(BIN)/python supply/install.py train,serve
	@touch $@

.venv/.installed-dev: .venv/.python pyproject.toml constraints.txt supply/install.py
	@echo "Installing llmd4rec, what it needs and what its tests need (a minute or two)"
	@$(BIN)/python supply/install.py train,serve,large,dev
	@touch .venv/.installed $@

install: .venv/.installed
	@$(BIN)/llmd4rec --version

demo: install
	@BIN=$(BIN) DEMO=$(DEMO) bash examples/demo.sh

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --num-workers 2
	$(BIN)/lint-imports --no-cache

# Lint goes on beside the tests, where they wait; what it says comes behind what they say.
test: .venv/.installed-dev
	@$(MAKE) --no-print-directory lint > .venv/lint.log 2>&1 & lint=$$!; trap "kill $$lint" INT TERM; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal; tested=$$?; \
	wait $$lint; linted=$$?; cat .venv/lint.log; \
	test $$tested -eq 0 && test $$linted -eq 0

# The other libraries are installed first, so that this does not count as measuring; without them the rest is measured.
bench: .venv/.installed
	-@$(BIN)/python benchmarks/peers/peer.py
	@$(BIN)/python benchmarks/run.py

bench-long: .venv/.installed
	@$(BIN)/python benchmarks/time_to_accuracy.py --minutes $(MINUTES) $(if $(DATA),--data $(DATA))

clean:
	rm -rf .venv $(DEMO)

include supply/targets.mk
