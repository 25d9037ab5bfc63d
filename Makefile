# `make demo` and `make test` do all the set-up themselves: Python >= 3.11, git and make are enough.
VENV := .venv
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,\
	$(shell $(p) -c 'import sys; sys.version_info >= (3, 11) and print("$(p)")' 2>/dev/null)))
STAMP := $(VENV)/.trimline-installed
BIN := $(VENV)/bin
# Files of tests go to as many processes; each may start two ranks, so more cores than two take more of them.
TEST_PROCESSES ?= 2

.PHONY: demo test test-long lint format reference env clean

demo: $(STAMP)
	$(BIN)/trimline run configs/runs/demo.yaml

test: $(STAMP)
	$(BIN)/python -m pytest -q -m "not slow" -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

test-long: $(STAMP)
	$(BIN)/python -m pytest -q -m slow

lint: $(STAMP)
	$(BIN)/ruff check data_prep pipeline launch tests benchmarks examples
	$(BIN)/ruff format --check data_prep pipeline launch tests benchmarks examples
	$(BIN)/mypy data_prep pipeline launch
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff format data_prep pipeline launch tests benchmarks examples
	$(BIN)/ruff check --fix data_prep pipeline launch tests benchmarks examples

reference: $(STAMP)
	$(BIN)/python -m launch.reference docs/reference

env: $(STAMP)

# The stamp makes a second call fast; it is older than these two files when the environment must be renewed.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no Python >= 3.11 found on PATH: install one, or call make PYTHON=/path/to/python3"; exit 2; }
	@echo "making $(VENV) with what pyproject.toml names, about 7 GB; this takes a minute or more" >&2
	@if command -v uv >/dev/null 2>&1; then \
		set -e; \
		$(BIN)/python -c '' 2>/dev/null || uv venv --quiet --clear --seed --python "$(PYTHON)" $(VENV); \
		uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[test]'; \
	else \
		set -e; \
		$(BIN)/python -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear $(VENV); \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'; \
	fi
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
