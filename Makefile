# make demo   train and compare on the embedded data set; a report in runs/demo
# make test   everything that CI checks
# make docs   the pages of docs/methods, generated from the code and measured
# make bench  speed and memory against the plain formulas
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test test-all docs bench lint types clean

demo: $(READY)
	$(BIN)/congener run demo --out runs/demo $(if $(wildcard runs/demo/recipe.yaml),--resume)

# One thread each: two test processes on two cores would else wait for each other's threads.
test: $(READY) lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow"

test-all: $(READY) lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup

docs: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python docs/generate.py

bench: $(READY)
	for file in benchmarks/bench_*.py; do OMP_NUM_THREADS=1 $(BIN)/python $$file || exit 1; done

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

# constraints.txt holds the versions that the tests and the quoted figures were made with.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --quiet --progress-bar off -c constraints.txt -e '.[image,transformers,bench,dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist
