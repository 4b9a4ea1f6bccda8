# make run    the main job: data, training, evaluation, predictions
# make check  formatting, lint, types, import rules, fast tests
# make test   the same with the slow tests
# make test-all   and those that take minutes or need a network, with every case of each test
# make bench  every benchmark, one after another
# make wheels a wheel for each platform in dist/, with its kernels; each that can run here is installed and tested

PYTHON  ?= python3
MINUTES ?= 3
# Two processes of one thread each: on two cores, OpenMP threads that wait for each other cost more than they bring.
WORKERS ?= 2

VENV := .venv
BIN  := $(VENV)/bin
CORE := $(VENV)/.core
DEV  := $(VENV)/.dev
ZIG  := $(VENV)/.zig

# Debian keeps ensurepip in a package of its own; the pip of $(PYTHON) installs into the environment as well.
PIP     := $(PYTHON) -m pip --disable-pip-version-check --python $(BIN)/python
PYTEST  := OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist worksteal
# A new folder for each call: nothing is overwritten.
NEW_RUN := runs/resnet20-$(shell date +%Y%m%d-%H%M%S)

BENCHMARKS := $(addprefix benchmarks/,train_throughput.py time_to_accuracy.py same_accuracy.py decode.py inference.py \
	folder_to_csv.py cold_start.py)

.PHONY: run lint check test test-all bench wheels

run: $(CORE)
	@mkdir -p runs
	$(BIN)/resnetkit data get cifar10
	$(BIN)/resnetkit train cifar10 --model resnet20 --minutes $(MINUTES) --out $(NEW_RUN) > $(NEW_RUN).txt
	$(BIN)/resnetkit evaluate $(NEW_RUN) cifar10 --report $(NEW_RUN)/test.html >> $(NEW_RUN).txt
	$(BIN)/resnetkit data samples cifar10 $(NEW_RUN)/pictures --count 6
	$(BIN)/resnetkit predict $(NEW_RUN) $(NEW_RUN)/pictures --top 3
	@echo && cat $(NEW_RUN).txt
	@echo && echo "resnet20 and resnet56, two of the models that come with the package:"
	$(BIN)/resnetkit evaluate resnet20:cifar10 cifar10
	$(BIN)/resnetkit evaluate resnet56:cifar10 cifar10

lint: $(DEV)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyrefly check
	$(BIN)/lint-imports

check: lint
	$(PYTEST) -m "not slow and not network"

test: lint
	$(PYTEST) -m "not network and not long"

test-all: lint
	$(PYTEST) --all-cases

bench: $(DEV)
	@for script in $(BENCHMARKS); do echo "== $$script"; $(BIN)/python "$$script" || exit 1; done

wheels: $(ZIG)
	$(BIN)/python wheels/build.py
	$(BIN)/python wheels/check.py

$(BIN)/python:
	$(PYTHON) -m venv --without-pip $(VENV)

$(CORE): pyproject.toml | $(BIN)/python
	@echo "Installing resnetkit and what it stands on into $(VENV); PyTorch is large, this takes a few minutes."
	$(PIP) install --quiet --editable .
	@touch $@

$(DEV): $(CORE)
	@echo "Installing what the tests need into $(VENV)."
	$(PIP) install --quiet --editable '.[dev]'
	@touch $@

$(ZIG): $(DEV)
	@echo "Installing zig, a compiler for all platforms, into $(VENV)."
	$(PIP) install --quiet 'ziglang>=0.15'
	@touch $@
