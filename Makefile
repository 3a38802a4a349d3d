# make demo   install, then run the embedded demonstration into ./run (about 5 minutes on two cores)
# make test   install, then run the tests (under 5 minutes, offline once installed)
# make check  format, lint and types
# make bench  compare tilings and speed on the embedded model
# make results  measure what docs/results/ says of quality at equal bytes: DATA as in docs/base-model.md, hours; stops and continues
VENV ?= .venv
PYTHON ?= python3
RUN ?= run
DATA ?= data
RESULTS ?= runs/results
BIN := $(VENV)/bin

.PHONY: demo test check format bench results clean

# torch first and alone: a bare requirement would pull in a GPU build.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/quasitile run --out $(RUN)

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/codec.py
	$(BIN)/python benchmarks/reading.py

SCORED := --text $(DATA)/general/train.jsonl --general $(DATA)/general/test.jsonl --tokens 10000 --windows 48 --seeds 3
SIZES := --bits 4 3 2 1 0.5 0.28 --only best paper presets

$(RESULTS)/qwen3/training.json: $(VENV)/.installed-dev
	$(BIN)/python tools/train_base.py $(DATA) $(@D) --architecture qwen3 --layers 4 --tokenizer src/quasitile/data/base --minutes 40 --step-tokens 4096

results: $(VENV)/.installed-dev $(RESULTS)/qwen3/training.json
	for model in embedded:base $(RESULTS)/qwen3; do \
	  $(BIN)/python benchmarks/peers.py $$model $(SCORED) --environments $(RESULTS)/peers --out $(RESULTS)/peers.jsonl && \
	  $(BIN)/python benchmarks/quality.py $$model $(SCORED) $(SIZES) --out $(RESULTS)/quality.jsonl || exit 1; \
	done
	$(BIN)/python benchmarks/quality.py $(SCORED) --bits 4 2 --only 'factors*' 'residual*' --out $(RESULTS)/tilings.jsonl

clean:
	rm -rf $(VENV) $(RUN) build dist
