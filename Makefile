# make demo   train and compare on the embedded data set; a report in runs/demo
# make test   everything that CI checks
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test test-all lint types clean

demo: $(READY)
	$(BIN)/congener run demo --out runs/demo $(if $(wildcard runs/demo/recipe.yaml),--resume)

# One thread each: two test processes on two cores would else wait for each other's threads.
test: $(READY) lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow"

test-all: $(READY) lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

# constraints.txt holds the versions that the tests and the quoted figures were made with.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --quiet --progress-bar off -c constraints.txt -e '.[image,dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist
