# Two targets do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
COMPARED := $(VENV)/.compared

.PHONY: demo docs test test-unit test-slow test-faults lint clean

# Two workers; each keeps a run of neighbours, which share what a module prepares.
PYTEST := $(BIN)/pytest -q -n 2 --dist worksteal
UNIT := $(addprefix tests/,cam data encoders evaluate heads losses refine test_config.py)

demo: $(STAMP)
	$(BIN)/tagmask demo -o runs/demo

test: $(STAMP) $(COMPARED)
	$(PYTEST)

# The part of `make test` that trains nothing; about a minute on two cores.
test-unit: $(STAMP) $(COMPARED)
	$(PYTEST) $(UNIT)

test-slow: $(STAMP) $(COMPARED)
	$(BIN)/pytest -q -m slow

# The campaigns of damaged inputs, killed runs and damaged states at length (docs/reliability.md).
test-faults: $(STAMP)
	TAGMASK_CAMPAIGN=25 $(BIN)/pytest -q --capture=tee-sys -m "" tests/faults

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site in site/, from docs/ and the docstrings. The variable switches off an advertisement.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev,docs]'
	touch $@

# What tests compare with and has no wheel: they skip where it cannot be built.
$(COMPARED): $(STAMP)
	$(BIN)/python -m pip install -q pydensecrf2 || echo "pydensecrf2 was not built; its tests are skipped."
	touch $@

clean:
	rm -rf $(VENV) build dist site *.egg-info
