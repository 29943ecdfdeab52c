# All that a newcomer needs: `make quickstart`, `make test`, `make check`.

PYTHON ?= python3
VENV ?= .venv
# More arguments for pip, for instance an index of CPU builds of torch where there is no GPU.
PIP_ARGS ?=
EXTRAS ?= dev

BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help quickstart test narrow-test slow-test check format schema bench clean

help:
	@echo "make quickstart   set up, then train a tiny model and show what it learned (about a minute)"
	@echo "make test         set up, then run the tests on both cores"
	@echo "make check        format, lint and types, as the pre-commit hook does"
	@echo "make format       mend the format and what the linter can mend"
	@echo "make schema       write configs/schema anew, after a change of the config"
	@echo "make narrow-test  8-bit optimizers and products, in an environment of its own: their packages slow down every start"
	@echo "make slow-test    the campaigns that take minutes"
	@echo "make bench        the benchmarks of CPUs, each peer in an environment of its own (an hour, several GB)"
	@echo "make clean        remove the virtual environment and every cache"

# Set-up runs once, and again when the dependencies change.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Oumi needs Python 3.11 or newer; name it: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -e '.[$(EXTRAS)]'
	@touch $@

quickstart: $(READY)
	$(BIN)/oumi quickstart

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadgroup

narrow-test:
	@$(MAKE) VENV=$(VENV)-narrow EXTRAS=dev,narrow $(VENV)-narrow/.ready
	$(VENV)-narrow/bin/python -m pytest -n 2 -m 'narrow and not gpu'

slow-test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m '(slow or sample) and not narrow and not gpu and not multi_gpu and not network'

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

schema: $(READY)
	@for kind in training inference job; do \
		$(BIN)/oumi config schema --kind $$kind > configs/schema/$$kind.json.new \
			&& mv configs/schema/$$kind.json.new configs/schema/$$kind.json || exit 1; \
	done

bench: $(READY)
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) $(VENV)-narrow .hypothesis .pytest_cache .mypy_cache .ruff_cache build dist
