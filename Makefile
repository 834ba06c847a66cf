# setup, demo, test, test-slow, lint, bench: each does all of its own set-up; the second run starts at once.

PYTHON := python3.11
BIN := .venv/bin
READY := .venv/ready
# One thread a process: tests and sites run side by side.
RUN := OMP_NUM_THREADS=1 $(BIN)/

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore

MODULES := $(filter-out __init__,$(basename $(wildcard *.py)))
PACKAGES := $(patsubst %/__init__.py,%,$(wildcard */__init__.py))

.PHONY: setup demo test test-slow lint bench

setup: $(READY)

demo: $(READY)
	$(RUN)voxfed demo $(ARGS)

# Two files at a time: the tests of one file share what they train.
test: $(READY)
	$(RUN)pytest -q -n 2 --dist loadscope --no-loadscope-reorder -m "not slow and not gpu" $(ARGS)

# One after the other: most start federations, which two cores hold one at a time.
test-slow: $(READY)
	$(RUN)pytest -q -m "slow and not gpu" $(ARGS)

# The repository root is the package `voxfed`; mypy finds it under that name through a link.
lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@mkdir -p build/typing && ln -sfn ../.. build/typing/voxfed
	MYPYPATH=build/typing $(BIN)/mypy $(MODULES:%=-m voxfed.%) $(PACKAGES:%=-p voxfed.%)

bench: $(READY)
	@for file in benchmarks/*.py; do echo "$$file"; $(RUN)python "$$file" --quick $(ARGS) || exit 1; done

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) --version >/dev/null 2>&1 || { echo "voxfed needs $(PYTHON); install it and try again" >&2; exit 1; }
	@echo "installing into .venv, a few minutes the first time"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -qq --requirement requirements.txt
	@$(BIN)/python -m pip install -qq --no-deps --no-build-isolation --editable .
	@touch $(READY)
