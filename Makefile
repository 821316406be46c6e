# Each target sets itself up: the virtual environment is made by the first, and kept.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DISTS  := . plugins/relay plugins/copy plugins/dgram
META   := pyproject.toml $(wildcard plugins/*/pyproject.toml) constraints.txt dev-constraints.txt
PIP    := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip --quiet

# What is started again and again is compiled once, also where an environment says otherwise.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check audit format bench fuzz faults dist pyz dist-check vm-test vm-install constraints completions pages clean

demo: $(VENV)/.run
	$(BIN)/vsockfwd demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist worksteal $(TESTS)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# Whether what is installed is what was chosen; asks nobody.
audit: $(VENV)/.dev
	$(BIN)/python packaging/audit.py

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev
	$(BIN)/python -m bench $(CASES)

# With atheris where it is there: .venv/bin/pip install atheris
fuzz: $(VENV)/.dev
	$(BIN)/python -m tests.fuzz $(or $(TARGET),all) $(or $(SECONDS),60)

faults: $(VENV)/.dev
	$(BIN)/python -m bench.faults

# Wheels of the core and the plugins, manual pages and completions in the core's, and the single file for guests.
dist: $(VENV)/.run pyz
	$(PIP) wheel --no-deps --no-build-isolation --no-index -w dist $(addprefix ./,$(DISTS))

pyz: $(VENV)/.run
	mkdir -p dist
	$(BIN)/python -X no_debug_ranges packaging/pyz/build.py dist/vsockfwd.pyz

# What takes whole seconds: the wheels in a fresh environment, the single file, ssh from another machine.
dist-check: $(VENV)/.dev dist
	$(BIN)/python -m pytest -n 2 -m dist tests plugins

vm-install:
	tests/vm/install.sh

# Emulated, a virtual machine has one CPU's worth: the level that takes longest runs beside the other two.
vm-test: $(VENV)/.dev vm-install
	log=$$(mktemp); \
	$(BIN)/python -m pytest -m vm tests/vm -k host_and_guest --durations=10 $(TESTS) >$$log 2>&1 & nested=$$!; \
	$(BIN)/python -m pytest -m vm tests/vm -k 'not host_and_guest' --durations=10 $(TESTS); others=$$?; \
	wait $$nested; nested=$$?; cat $$log; rm -f $$log; test $$others -eq 0 -a $$nested -eq 0

# What users run needs the first, what developers run both. Everything is pinned and comes with its hash; the project's
# own distributions are installed in place, and build with what is pinned.
$(VENV)/.run: $(META)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "vsockfwd needs Python 3.11 or newer: make PYTHON=…")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --require-hashes -r constraints.txt
	$(PIP) install --no-deps --no-build-isolation --no-index $(addprefix -e ./,$(DISTS))
	touch $@

$(VENV)/.dev: $(VENV)/.run
	$(PIP) install --require-hashes -r dev-constraints.txt
	touch $@

# Write the constraints anew from what pyproject.toml asks for: the newest versions, with hashes, without addresses.
constraints: $(VENV)/.dev
	packaging/constraints.sh

completions: $(VENV)/.dev
	$(BIN)/python packaging/completions.py

pages: $(VENV)/.dev
	$(BIN)/python packaging/relay_pages.py
	$(BIN)/python packaging/man_pages.py

clean:
	rm -rf $(VENV) dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
