# Two commands set everything up: `make demo` (the main job on what ships) and `make test`.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --constraint constraints.txt
POSITIONS ?= 3000

.PHONY: help demo test types wheel bench growth fuzz docs forms models synthetic state-gradients clean

help:
	@grep -E '^[a-z-]+:.*##' Makefile

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# Stamps, so that a second run installs nothing.
$(VENV)/.runtime: setup.cfg pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable .
	@touch $@

$(VENV)/.everything: setup.cfg pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) torch==2.13.0
	$(PIP) --editable '.[torch,tensorflow,distributed,samples,test]'
	@touch $@ $(VENV)/.runtime

$(VENV)/.bench: $(VENV)/.everything
	$(PIP) --editable '.[bench]'
	@touch $@

demo: $(VENV)/.runtime ## compare a trained model with its untrained twin, in demo/
	mkdir -p demo
	$(BIN)/mnemoscope inspect samples/models/pydoc-lstm.onnx
	$(BIN)/mnemoscope corpus pydoc -o demo/corpus.txt
	$(BIN)/mnemoscope analyze samples/models/pydoc-lstm.onnx demo/corpus.txt \
	  -o demo/trained.nc --positions $(POSITIONS)
	$(BIN)/mnemoscope analyze samples/models/pydoc-lstm-untrained.onnx demo/corpus.txt \
	  -o demo/untrained.nc --positions $(POSITIONS)
	$(BIN)/mnemoscope show demo/trained.nc --state lstm0.c
	$(BIN)/mnemoscope show demo/untrained.nc --state lstm0.c
	$(BIN)/mnemoscope plot demo/trained.nc demo/untrained.nc --state lstm0.c \
	  --label trained --label untrained -o demo/memory.png
	@echo "The figure is demo/memory.png; README.md says what it shows."

test: $(VENV)/.everything ## lint, types and tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) types
	$(BIN)/python -m pytest --numprocesses auto

types: $(VENV)/.everything
	rm -rf build/types && mkdir -p build/types/mnemoscope
	cp -r analyzer exporters cli build/types/mnemoscope/
	cp pyproject.toml build/types/
	cd build/types && $(abspath $(BIN))/mypy --namespace-packages --explicit-package-bases mnemoscope

wheel: $(VENV)/.everything ## build the wheel and run it where there is no torch
	rm -rf build/wheel && $(BIN)/python -m build --wheel --outdir build/wheel .
	$(PYTHON) -m venv --clear build/wheel/venv
	build/wheel/venv/bin/python -m pip install --quiet --constraint constraints.txt \
	  build/wheel/*.whl
	cd build/wheel && venv/bin/python $(CURDIR)/tests/wheel_check.py $(CURDIR)/samples/models

bench: $(VENV)/.bench ## time the main job beside other ways of computing it
	$(BIN)/python -m benchmarks

growth: $(VENV)/.everything ## how its time grows with each size
	$(BIN)/python -m benchmarks.growth

fuzz: $(VENV)/.everything ## run every damaged file through the commands
	$(BIN)/python -m tests.fuzz --jobs 2

docs: $(VENV)/.everything ## write the generated pages again
	$(BIN)/python docs/generate.py
	$(BIN)/python tests/spec_cases.py docs/operators.md

forms: $(VENV)/.everything ## export and analyse every form of model, and write docs/forms.md
	$(BIN)/python tests/exporters/forms_table.py docs/forms.md

models: $(VENV)/.everything ## train the shipped models again
	$(BIN)/python samples/make_models.py

synthetic: $(VENV)/.everything ## the synthetic proof at its small setting, in demo/synthetic
	$(BIN)/python samples/synthetic/run.py --scale small -o demo/synthetic

state-gradients: $(VENV)/.everything ## the paper's experiments at their small setting: an hour
	$(BIN)/python -m samples.state_gradients --scale small --publish docs/reproduction.md

clean:
	rm -rf $(VENV) build demo dist *.egg-info
