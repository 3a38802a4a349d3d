# make demo   install, then run the embedded demonstration into ./run (about 5 minutes on two cores)
# make test   install, then run the tests (under 5 minutes, offline once installed)
# make check  format, lint and types
# make bench  compare tilings and speed on the embedded model
VENV ?= .venv
PYTHON ?= python3
RUN ?= run
BIN := $(VENV)/bin

.PHONY: demo test check format bench clean

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

clean:
	rm -rf $(VENV) $(RUN) build dist
