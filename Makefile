# A book of reproducible research; make help lists what can be made.
PROFILE ?= laptop
SEED ?= 0
DATA_ROOT ?=
GPUS ?= 1
# chapters that a GPU is for, the cheapest evidence first
WORTH ?= 11 12 08 09 03 06 04 05 07 10
CORES ?= all
PYTHON ?= python3
BIN := .venv/bin
ENV := .venv/.complete
SNAKEMAKE = PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/snakemake --cores $(CORES) --quiet progress reason rules host --rerun-incomplete --keep-going --nolock --resources gpu=$(GPUS)
# small networks spin when several processes have several threads each: one thread a process
ALONE := TQDM_DISABLE=1 OMP_NUM_THREADS=1

.PHONY: help env book records verify test lint smoke check run gpu refresh golden lock clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "make %-8s %s\n", $$1, $$2}'

book: $(ENV)  ## environment, every chapter executed once, HTML in _build/html (PROFILE=laptop GPUS=1 DATA_ROOT=)
	$(SNAKEMAKE) --prioritize book/runs/$(PROFILE)/05_distribution-s0.ipynb book/runs/$(PROFILE)/12_density-s0.ipynb --config profile=$(PROFILE) data_root="$(DATA_ROOT)"

records: $(ENV)  ## the reference, book/results/laptop: all seeds of what is missing or of other code; goes on after a kill (CHAPTER=03 for one)
	$(ALONE) $(SNAKEMAKE) --config profile=$(PROFILE) data_root="$(DATA_ROOT)" only=$(CHAPTER) -- records

verify: $(ENV)  ## run one chapter and grade its numbers by the reference, writing neither: make verify CHAPTER=02
	@test -n "$(CHAPTER)" || { echo "say which chapter: make verify CHAPTER=02" >&2; exit 2; }
	$(BIN)/python book/execute.py $(CHAPTER) --profile $(PROFILE) --seed $(SEED)
	$(BIN)/python book/pages.py --profile $(PROFILE) --verify book/runs/$(PROFILE)/$(CHAPTER)*-s$(SEED).json

restamp: $(ENV)  ## after a change that moves no number: one seed of the reference again, and all its records are of today's code (CHAPTER=04 SEED=0)
	$(BIN)/python book/execute.py $(CHAPTER) --profile $(PROFILE) --seed $(SEED) --restamp

test: $(ENV)  ## environment, ruff, every chapter once under nbval, its smoke page, pytest
	@failed=; for step in lint smoke check; do $(MAKE) --no-print-directory $$step || failed="$$failed $$step"; done; \
	test -z "$$failed" || { echo "make test: failed:$$failed" >&2; exit 1; }

lint: $(ENV)  ## ruff: rules and format, notebooks too; zizmor: the hosted workflows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/zizmor --offline --quiet --no-progress .github/workflows

smoke: $(ENV)  ## every chapter once at smoke size under nbval, and the book of these runs
	$(ALONE) $(SNAKEMAKE) --config profile=smoke out=_build/smoke

check: $(ENV)  ## pytest, the smoke book and its records included
	$(ALONE) GEOREPS_SMOKE_BOOK=_build/smoke/html $(BIN)/python -m pytest -q -n 2 --dist worksteal tests

run: $(ENV)  ## one chapter: make run CHAPTER=03 PROFILE=gpu SEED=1 DATA_ROOT=/your/pairs SET="epochs=60 batch=64"
	@test -n "$(CHAPTER)" || { echo "say which chapter: make run CHAPTER=03 PROFILE=$(PROFILE) SEED=$(SEED)" >&2; exit 2; }
	$(BIN)/python book/execute.py $(CHAPTER) --profile $(PROFILE) --seed $(SEED) --data-root "$(DATA_ROOT)" $(addprefix -p ,$(SET))

gpu: $(ENV)  ## what 25 minutes of a GPU can: kernel tests, the speed table a case at a time, chapters of profile gpu in the order of their worth; goes on where it stopped. A machine with torch of its own: make gpu ENV= BIN=/usr/bin
	$(BIN)/python -m pytest -q tests/core/test_kernels.py
	$(BIN)/python -m georeps.lab.speed
	for chapter in $(WORTH); do $(BIN)/python book/execute.py $$chapter --profile gpu --reference || failed="$$failed $$chapter"; done; \
	test -z "$$failed" || { echo "make gpu: failed:$$failed" >&2; exit 1; }

refresh: $(ENV)  ## renew the smoke outputs that are committed in book/chapters (CHAPTER=03 for one)
	$(ALONE) $(BIN)/python book/execute.py $(CHAPTER) --refresh

golden: $(ENV)  ## renew tests/golden from the last smoke runs (RECORDS=folders of the same runs on other processors)
	$(BIN)/python tests/test_golden.py $(RECORDS)

env: $(ENV)  ## .venv at the versions and hashes of requirements.lock

$(ENV): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "georeps needs Python >= 3.11, found " + sys.version.split()[0] + "; say which: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	@# uv installs in seconds what takes pip minutes, and compiles it when told, as pip does; without it, pip
	if command -v uv >/dev/null || $(BIN)/python -m pip install -q --disable-pip-version-check uv; \
	then install="uv pip install -q --compile-bytecode --python $(BIN)/python"; else install="$(BIN)/python -m pip install -q --disable-pip-version-check"; fi; \
	PATH="$(BIN):$$PATH"; $$install --no-deps --require-hashes -r requirements.lock && $$install --no-deps -e .
	@touch $(ENV)

lock: $(ENV)  ## requirements.lock anew: the newest versions that fit pyproject.toml, with their hashes
	PATH="$(BIN):$$PATH" uv pip compile pyproject.toml --extra book --extra test --group data --universal --python-version 3.11.5 --generate-hashes \
	  --no-annotate --no-header --no-emit-index-url --upgrade -q -o requirements.lock

clean:  ## all that was built, but for the environment
	rm -rf _build .snakemake book/runs book/results/smoke
