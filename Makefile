# make book     environment, every chapter executed, HTML in _build/html      (PROFILE=laptop GPUS=1 DATA_ROOT=)
# make test     environment, a smoke book, pytest, nbval
# make run      one chapter: make run CHAPTER=03 PROFILE=gpu SEED=1 DATA_ROOT=/your/pairs SET="epochs=60 batch=64"
# make refresh  renew the smoke outputs that are committed in book/chapters (CHAPTER=03 for one)
PROFILE ?= laptop
SEED ?= 0
DATA_ROOT ?=
GPUS ?= 1
CORES ?= all
PYTHON ?= python3
BIN := .venv/bin
ENV := .venv/.complete
SNAKEMAKE = PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/snakemake --cores $(CORES) --quiet progress reason rules host --rerun-incomplete --keep-going --nolock --resources gpu=$(GPUS)

.PHONY: env book test run refresh clean

book: $(ENV)
	$(SNAKEMAKE) --config profile=$(PROFILE) data_root="$(DATA_ROOT)"

test: $(ENV)
	$(SNAKEMAKE) --config profile=smoke out=_build/smoke
	GEOREPS_SMOKE_BOOK=_build/smoke/html TQDM_DISABLE=1 $(BIN)/python -m pytest -q -n 2 tests
	TQDM_DISABLE=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile -p no:cacheprovider --nbval --nbval-current-env \
	  --nbval-cell-timeout 600 --nbval-sanitize-with tests/sanitize.cfg book/chapters

run: $(ENV)
	@test -n "$(CHAPTER)" || { echo "say which chapter: make run CHAPTER=03 PROFILE=$(PROFILE) SEED=$(SEED)" >&2; exit 2; }
	$(BIN)/python book/execute.py $(CHAPTER) --profile $(PROFILE) --seed $(SEED) --data-root "$(DATA_ROOT)" $(addprefix -p ,$(SET))

refresh: $(ENV)
	$(BIN)/python book/execute.py $(CHAPTER) --refresh

env: $(ENV)

$(ENV): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "georeps needs Python >= 3.11, found " + sys.version.split()[0] + "; say which: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	@# uv installs in seconds what takes pip minutes; without it, pip
	if command -v uv >/dev/null || $(BIN)/python -m pip install -q --disable-pip-version-check uv; \
	then PATH="$(BIN):$$PATH" uv pip install -q --python $(BIN)/python -c constraints.txt -e '.[book,test]'; \
	else $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[book,test]'; fi
	@touch $(ENV)

clean:
	rm -rf _build .snakemake book/runs book/figures book/results/smoke book/results/laptop book/results/custom
