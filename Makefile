# make engine   environment, a small random DeepSeek-V2 checkpoint, its CPU engine, the proof, some text; then its
#               engine for an H800, proven on the host
# make test     lint, types and every test that needs neither a GPU nor minutes
PYTHON ?= python3
VENV ?= .venv
WORK ?= build/demo
BIN := $(VENV)/bin
DSV2 := $(BIN)/dsv2-compile
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: engine test lint test-slow clean

engine: $(VENV)/installed
	rm -rf $(WORK)
	$(DSV2) synth tiny -o $(WORK)/checkpoint
	$(DSV2) build $(WORK)/checkpoint --cpu -o $(WORK)/engine
	$(DSV2) verify $(WORK)/engine --checkpoint $(WORK)/checkpoint --report $(WORK)/report.html
	$(DSV2) run $(WORK)/engine "The cache of a latent attention layer" --max-new-tokens 48
	$(DSV2) synth tiny --set layers=2 -o $(WORK)/small
	$(DSV2) build $(WORK)/small --gpu h800 -o $(WORK)/h800 --max-batch-size 4 --max-seq-len 1024
	$(DSV2) verify $(WORK)/h800

test: $(VENV)/tested lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/tested
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

test-slow: $(VENV)/tested
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable .
	touch $@

$(VENV)/tested: $(VENV)/installed
	$(INSTALL) --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
