# `make bootstrap` and `make test` make the environment first; `make help` lists the rest.

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
# Where torch comes from, when not from pip's own index; on a CPU box elsewhere give PyTorch's CPU
# wheel index here, or pip brings several GB of CUDA packages: make setup TORCH_INDEX=<url>
TORCH_INDEX ?=
# Extras of pyproject.toml that are installed: a machine that only runs needs none of dev's.
EXTRAS ?= dev
# Extra arguments of the command: make bootstrap ARGS="--serve train.first_steps=300"
ARGS ?=
RUN ?= runs/tabletop

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Else Ray rebuilds the environment in every worker when started under `uv run`.
export RAY_ENABLE_UV_RUN_RUNTIME_ENV := 0

.DEFAULT_GOAL := help
.PHONY: help setup bootstrap test test-core test-ray lint format type serve mlflow docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## make the environment in .venv

# pip compiles every module, on one core; most of transformers' are never imported. Without any
# compiling, the dozen processes of the first run would each do it, all at once. Some packages ship
# templates named .py, which cannot be compiled: not an error.
$(STAMP): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || \
	  { echo "error: Python 3.11 or 3.12 is needed; name one with make setup PYTHON=<path>" >&2; exit 2; }
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile --no-deps --constraint constraints.txt \
	  $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.$(if $(EXTRAS),[$(EXTRAS)])'
	@$(BIN)/python -m compileall -q -q -j 0 -x '/transformers/models/(?!auto|chameleon|__init__)|/tests?/' $(VENV)/lib >/dev/null || true
	@touch $@

bootstrap: $(STAMP) ## run the whole loop on the embedded default: 3 rounds, 2 CPU cores
	$(BIN)/python ray_jobs/bootstrap.py --config configs/tabletop.yaml --rounds 3 $(ARGS)

test: lint type ## everything that must pass before a change lands
	@echo "pytest: two halves side by side, each printed when it is done (minutes)"
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target test-core test-ray

# Half of the time each, on a core each: what runs in one process, and what starts Ray or commands.
# One thread a process: the models in tests are tiny, and threads would only fight over the cores.
test-core: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/unit tests/contracts $(ARGS)

test-ray: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/cluster tests/integration tests/doors $(ARGS)

lint: $(STAMP) ## ruff: lint and format; import-linter: the floors
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/ruff format --check .

format: $(STAMP) ## rewrite the files in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: $(STAMP) ## mypy, strict
	$(BIN)/mypy

serve: $(STAMP) ## keep the last round's generator up behind HTTP
	$(BIN)/dynamics serve $(RUN)

mlflow: $(STAMP) ## compare rounds in the browser: http://127.0.0.1:5000
	$(BIN)/mlflow ui --backend-store-uri sqlite:///$(abspath $(RUN))/mlflow.db --host 127.0.0.1 --port 5000

docs: $(STAMP) ## build the documentation site into site/
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean: ## remove the environment and caches (run folders stay)
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
