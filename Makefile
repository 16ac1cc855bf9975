# make install                                    .venv with all that is needed; then `source .venv/bin/activate`
# make run                                        the whole chain on the embedded digits
# make run DATA=train.csv.gz TEST=test.csv.gz     the same on a Kaggle download (SAMPLE=sample_submission.csv if you like)
# make digits DATA=train.csv.gz TEST=test.csv.gz  the long recipes of docs/digits.md, 300 core minutes or more;
#                                                 TRAIN="--mixed-precision bf16" is added to each training, as for `make run`
# make test                                       the whole suite
# make faults                                     every fault of docs/reliability.md, with a closing line of figures
# make competitions                               real competitions in miniature, which MAKER makes and scores
# make kaggle                                    dist/kaggle/: a folder to upload as a data set, and three notebooks
# make gpu                                        what only a GPU can show, into benchmarks/gpu.md: GPU="--digits train.csv.gz"
# make bounds                                     the chain on the lowest versions that pyproject.toml allows, and on Kaggle's
#                                                 image with its notebooks (two environments, 11 GB; IMAGE_PYTHON=python3.12)

PYTHON := .venv/bin/python
IMAGE_PYTHON ?= python3.12
# Each data set has a work folder of its own: the name of its folder and a checksum of its path.
ifdef DATA
WORK := work/$(notdir $(patsubst %/,%,$(dir $(abspath $(DATA)))))-$(firstword $(shell printf %s '$(abspath $(DATA))' | cksum))
RECIPES := recipes/digits_fast.yaml recipes/digits_second.yaml
else
WORK := work/embedded
RECIPES := recipes/embedded.yaml recipes/embedded_second.yaml
endif
TABLE := $(if $(DATA),--data $(DATA))
FOLDS := --folds $(WORK)/folds.csv
RUNS := --runs-dir $(WORK)/runs
SUBMISSION := $(if $(SAMPLE),--sample $(SAMPLE))

FAULTS := $(foreach what,faults hostile fuzz environment crash_points kills storage processes jobs sweep checkpoint,$(wildcard tests/*/test_$(what).py))

MAKER ?= ../shared/competitions/make.py

.PHONY: install run digits test faults competitions kaggle bounds image gpu

install: .venv/installed

run: .venv/installed
	$(if $(DATA),$(if $(TEST),,$(error DATA without TEST: add TEST=path of the test table)),$(WITHOUT_DATA))
	$(PYTHON) folds.py $(TABLE) $(FOLDS)
	$(foreach recipe,$(RECIPES),$(PYTHON) train_fold.py $(TABLE) $(FOLDS) $(RUNS) --config $(recipe) --fold all $(TRAIN) &&) true
	$(PYTHON) infer.py $(TABLE) $(if $(TEST),--test $(TEST)) $(RUNS) $(SUBMISSION)
	$(PYTHON) ensemble.py $(FOLDS) $(RUNS) $(SUBMISSION)

digits: RECIPES := recipes/digits_best.yaml recipes/digits_centred.yaml recipes/digits_elastic.yaml
digits: RUNS := --runs-dir $(WORK)/digits
digits: WITHOUT_DATA = $(error add DATA=path of the train table and TEST=path of the test table)
digits: run

test: .venv/installed
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m pytest --numprocesses 2 --dist loadfile

# One at a time: what is killed at a random moment should not wait for a core.
faults: .venv/installed
	FIVEFOLD_FAULTS=full $(PYTHON) -m pytest $(wildcard $(FAULTS))

competitions: .venv/installed
	$(PYTHON) -m benchmarks.competitions $(MAKER)

kaggle: .venv/installed
	$(PYTHON) -m notebooks.pack

gpu: .venv/installed
	$(PYTHON) -m benchmarks.gpu $(GPU)

bounds: .venv-bounds/installed image
	$(call chain,.venv-bounds)

# The notebooks first: the first one installs the wheel that the image lacks.
image: .venv-image/installed kaggle
	FIVEFOLD_PACKED=dist/kaggle/fivefold .venv-image/bin/python -m pytest tests/scripts/test_notebooks.py
	$(call chain,.venv-image)

define chain
	rm -rf work/$1
	$1/bin/python folds.py --work work/$1
	for run in one two; do $1/bin/python train_fold.py --work work/$1 --run $$run --epochs 2 --fold all || exit 1; done
	$1/bin/python infer.py --work work/$1 --tta digits
	$1/bin/python ensemble.py --work work/$1
	$1/bin/python report.py --work work/$1
endef

.venv/installed: pyproject.toml
	python3 -m venv .venv
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

# The lower bounds of pyproject.toml, read as exact versions.
.venv-bounds/installed: pyproject.toml
	python3 -m venv .venv-bounds
	python3 -c "import tomllib; print('\n'.join(d.replace('>=', '==') for d in \
		tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies']))" > .venv-bounds/requirements.txt
	.venv-bounds/bin/python -m pip install --quiet --disable-pip-version-check --requirement .venv-bounds/requirements.txt
	touch $@

# Kaggle's image, as notebooks/image.txt lists it: about 5 GB.
.venv-image/installed: notebooks/image.txt
	$(IMAGE_PYTHON) -m venv --clear .venv-image
	.venv-image/bin/python -m pip install --quiet --disable-pip-version-check --requirement $< 'pytest>=8'
	touch $@
