# The project's commands. `make` alone lists them.

PYTHON ?= python3
# Tested versions, for Python 3.11 and newer; `make install CONSTRAINTS=/dev/null` takes the newest there are.
CONSTRAINTS ?= constraints.txt

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PROJECTS := pyproject.toml $(wildcard plugins/*/pyproject.toml)
PLUGINS := $(patsubst %/pyproject.toml,%,$(wildcard plugins/*/pyproject.toml))
BUILDERS := editables hatch-fancy-pypi-readme hatchling setuptools
# One process of tests for each core, up to 8, with one thread each; files stay together, and with them what tests share.
PARALLEL := -n logical --maxprocesses 8 --dist worksteal
# What `make lowest` tests, but for a plugin with a default that pydantic 2.9 cannot copy, and a schema that it writes otherwise.
LOWEST := tests/registry tests/recipe tests/test_plan.py --ignore=tests/registry/test_hostile_plugins.py \
  --deselect tests/recipe/test_schema.py::test_the_schema_is_that_of_the_golden_file

.PHONY: help install demo check test lint docs unchanged emoji bench compare compare-rl peers quantization lowest release clean

help:  ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST)

install: $(INSTALLED)  ## install the core and all plugins into .venv

# What builds our distributions is installed once, in place of once for each of them. Modules are compiled when they are
# first imported, which most never are: those of `draft` here, even where Python is told not to keep what it compiles.
$(INSTALLED): $(PROJECTS) $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) $(BUILDERS)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) --no-build-isolation --no-compile \
	  -e '.[dev]' $(addprefix -e ./,$(PLUGINS))
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -c 'import draft_core; draft_core.Trainer'
	touch $@

demo: install  ## tune an embedded model to draw two things as asked: runs/demo/report.html
	$(BIN)/draft demo

check: lint  ## what to run before a commit: lint, types and the fast tests, ten minutes on two slow cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(PARALLEL) -m 'not slow'

test: install  ## run all tests, twenty minutes on two slow cores; with DRAFT_THOROUGH=1 on all cases
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL)

lint: install  ## formatting, lint, types, and which folder may import which
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

docs: install  ## build the site into site/, with warnings as errors, and check its links
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict
	$(BIN)/python -m tools.check_site site

unchanged: install  ## train by BASE and by this tree, and compare every bit: make unchanged BASE=main
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/unchanged.py $(BASE)

emoji: install  ## train the embedded model anew, from its images to its package: hours
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e './plugins/emoji[training]'
	$(BIN)/python plugins/emoji/training/train.py all --work runs/emoji

bench: install  ## measure the JPEG surrogate, every port against its reference, and the cost of an update
	$(BIN)/python benchmarks/jpeg_surrogate.py
	$(BIN)/python benchmarks/reference_scorers.py
	$(BIN)/python benchmarks/cost.py

compare: install  ## train with every method and compare them, into docs/images/compare.png: hours
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/compare.py

compare-rl: install  ## train with and without the reward's gradient, into docs/images/compare-rl*.png: many hours
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/compare_rl.py --setting few-steps
	$(BIN)/python benchmarks/compare_rl.py --setting few-steps --plot
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/compare_rl.py
	$(BIN)/python benchmarks/compare_rl.py --plot

peers: install  ## measure beside TRL's AlignProp, in an environment of its own, into docs/measurements/peers.md
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/peers.py

quantization: install  ## install bitsandbytes and torchao, and test weights in 4 and 8 bits
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[quantization]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/runs/test_quantization.py

lowest:  ## run fast tests with the lowest dependencies, in .venv-lowest
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check uv
	echo 'draft-core @ file://$(CURDIR)' > .venv-lowest/ours.txt
	.venv-lowest/bin/uv pip compile --quiet --resolution lowest-direct --python .venv-lowest/bin/python \
	  --override .venv-lowest/ours.txt --no-emit-package draft-core --extra dev --extra test --no-annotate \
	  pyproject.toml plugins/*/pyproject.toml --output-file .venv-lowest/lowest.txt
	.venv-lowest/bin/uv pip install --quiet --python .venv-lowest/bin/python -r .venv-lowest/lowest.txt
	.venv-lowest/bin/uv pip install --quiet --python .venv-lowest/bin/python --no-deps -e . $(addprefix -e ./,$(PLUGINS))
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -q -m 'not slow' -W ignore::DeprecationWarning $(LOWEST)

release: install  ## build, check and install all distributions from a clean clone, into dist/; TAG names the release
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[release]'
	$(BIN)/python -m tools.release --tag "$${TAG:-}"

clean:  ## remove what the commands above made, runs excepted
	rm -rf $(VENV) .venv-lowest dist site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
