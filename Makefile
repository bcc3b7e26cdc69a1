# One verb per thing to do; `make` lists them. Every verb sets up .venv first if it is missing or out of date:
# for `demo` and `build` what a user needs, for all others also what tests and checks need.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:

# Bytecode is kept, whatever the environment says: dozens of programs are started, and each would compile all that it
# imports anew.
export PYTHONDONTWRITEBYTECODE :=

BIN := .venv/bin
READY := .venv/.ready
DEV_READY := .venv/.dev-ready
NODE_READY := .venv/node-example/.ready
# Three on two cores, since a fifth of a worker's time is waiting for processes and leases; a file's tests stay together,
# since they share what is slow to make. tests/conftest.py orders the files.
PYTEST := $(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder
QUICK := tests/gateway tests/sampler_svc tests/unitune tests/unitune_client tests/test_house_rules.py
EXTRAS := cli,tuner,sampler,gateway
TORCH := $(shell sed -n '/^torch==/p' constraints.txt)
# Set PYTHON to use another interpreter, 3.11 or newer.
PYTHONS := $(strip $(PYTHON) python3.11 python3)
# How long a soak lasts, and how many requests a fuzz sends. SEED repeats the draws of an earlier one.
SECONDS := 900
REQUESTS := 10000
SEED :=
# Set BASE_MODEL to a diffusers folder to use that instead of stickerbook.
BASE_MODEL :=

# For the kit: the largest size of its files in MiB, and the Python of the machine with the GPU.
PIECE_MIB := 60
GPU_PYTHON := 3.12

.PHONY: demo test test-all quick test-gpu gpu-kit check check-k8s protos bench editbench soak chaos fuzz train build clean help

demo: $(READY) ## edit a picture with all three services here; pictures in out/demo
	@$(BIN)/python -m stickerbook.demo

test: check $(NODE_READY) ## check, then the tests that run on a CPU, without the exhaustive ones
	@$(PYTEST) -m "not gpu and not exhaustive"

test-all: check $(NODE_READY) ## check, then all tests that run on a CPU: also every combination, true sizes, a soak
	@$(PYTEST) -m "not gpu"

quick: $(DEV_READY) ## the tests that need no export, no engine and no running services: a minute
	@$(PYTEST) -q -m "not gpu and not slow and not exhaustive" $(QUICK)

test-gpu: $(DEV_READY) ## engines and tuner on an NVIDIA GPU, with numbers in out/gpu; says why it skips where there is none
	@if command -v nvidia-smi > /dev/null; then \
	  $(BIN)/python -m pip uninstall --quiet --yes onnxruntime; \
	  $(BIN)/python -m pip install --quiet -c constraints.txt -e ".[sampler-gpu]"; \
	fi
	@$(BIN)/python -m pytest -m gpu tests/gpu

gpu-kit: $(DEV_READY) ## out/gpu-kit, to measure on a GPU machine without a network; PIECE_MIB=60, GPU_PYTHON=3.12
	@$(BIN)/python -m bench.gpu.kit --piece-mib $(PIECE_MIB) --python $(GPU_PYTHON)

check: $(DEV_READY) ## lint, types, who imports whom, protos; seconds once mypy's cache is warm
	@echo "ruff"
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { echo "to mend it: $(BIN)/ruff format"; exit 1; }
	@echo "mypy"
	@$(BIN)/mypy
	@echo "import-linter"
	@$(BIN)/lint-imports
	@echo "buf"
	@$(BIN)/buf lint
	@$(BIN)/buf breaking protos --against protos/released.binpb
	@$(BIN)/python -m protos.generate --check
	@$(BIN)/python -m protos.options_page --check
	@$(BIN)/python -m protos.settings_page --check
	@$(BIN)/python -m protos.edge_contract --check
	@$(BIN)/python -m protos.openapi --check

check-k8s: $(DEV_READY) ## k8s/: every overlay rendered, strict schemas, policies; seconds, without a cluster (make test does it, too)
	@$(BIN)/python -m pytest -q -m "not slow" tests/k8s

protos: $(DEV_READY) ## generate unitune/v1, docs/options.md, docs/openapi.json and what Envoy reads from protos/, docs/settings.md from the configurations
	@$(BIN)/python -m protos.generate
	@$(BIN)/python -m protos.options_page
	@$(BIN)/python -m protos.settings_page
	@$(BIN)/python -m protos.edge_contract
	@$(BIN)/python -m protos.openapi

bench: $(DEV_READY) ## speed of every stage, as ratios measured in one run
	@$(BIN)/python -m bench

editbench: $(DEV_READY) ## edit quality against ground truth; QUICK=1 for 24 cases in minutes
	@$(BIN)/python -m bench.editbench $(if $(QUICK),--quick)

soak: $(DEV_READY) ## clients and faults for SECONDS=900, then whether everything holds; a report in out/soak
	@$(BIN)/python -m bench.soak --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

chaos: $(DEV_READY) ## a fleet of services under tenants and faults for SECONDS=900, then whether everything holds
	@$(BIN)/python -m bench.chaos --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

fuzz: $(DEV_READY) ## REQUESTS=10000 that nobody should send, at every port, and what is answered
	@$(BIN)/python -m bench.fuzz --requests $(REQUESTS) $(if $(SEED),--seed $(SEED))

train: $(DEV_READY) ## train stickerbook and its judge, from where it was interrupted; hours on a CPU
	@$(BIN)/python -m stickerbook.train_autoencoder
	@$(BIN)/python -m stickerbook.train
	@$(BIN)/python -m stickerbook.save_model
	@$(BIN)/python -m stickerbook.train_super_resolution
	@$(BIN)/python -m stickerbook.save_model --only super_resolution
	@$(BIN)/python -m stickerbook.judge
	@$(BIN)/python -m stickerbook.train_clip

build: $(READY) ## export the base model and build its engines (BASE_MODEL=folder for another model)
	@$(BIN)/unitune build $(if $(BASE_MODEL),--base-model "$(BASE_MODEL)")

clean: ## remove .venv and every cache; keeps out/ and work/
	@rm -rf .venv build dist *.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# pip's output goes into a log, which is shown when it fails. Nothing is compiled in advance: a quarter of the modules is
# ever imported, and Python compiles those when they first are.
define INSTALL
log=.venv/install.log; : > $$log; \
pip_install() { \
  $(BIN)/python -m pip install --disable-pip-version-check --no-compile "$$@" >> $$log 2>&1 || \
    { tail -n 30 $$log; echo "pip failed; the whole log is $$log"; exit 1; }; \
}
endef

# torch goes first and alone, so that no other package's requirement chooses a build of it.
$(READY): pyproject.toml constraints.txt
	@python=; \
	for candidate in $(PYTHONS); do \
	  if "$$candidate" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    python="$$candidate"; break; \
	  fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "no Python 3.11 or newer with venv among: $(PYTHONS); install one or run make PYTHON=/path/to/python"; exit 1; \
	fi; \
	if $(BIN)/python -m pip --version > /dev/null 2>&1; then \
	  echo "updating .venv, because pyproject.toml or constraints.txt changed ..."; \
	else \
	  echo "installing into .venv (about 3 minutes, once; most of it is $(TORCH)) ..."; \
	  "$$python" -m venv --clear .venv; \
	fi; \
	$(INSTALL); \
	pip_install "$(TORCH)"; \
	pip_install -c constraints.txt -e ".[$(EXTRAS)]"; \
	touch $@; \
	echo "done: $$($(BIN)/python --version) in .venv"

$(DEV_READY): $(READY)
	@echo "installing what checks and tests need into .venv ..."; \
	$(INSTALL); \
	pip_install -c constraints.txt -e ".[$(EXTRAS),dev]"; \
	touch $@

# The packages of examples/node, with which its test runs it; where there is no Node.js the test says so and skips.
$(NODE_READY): examples/node/package.json examples/node/package-lock.json | $(DEV_READY)
	@if command -v npm > /dev/null; then \
	  echo "installing what examples/node needs into .venv ..."; \
	  mkdir -p $(@D); cp $^ $(@D); \
	  npm ci --prefix $(@D) --no-audit --no-fund > $(@D)/install.log 2>&1 || \
	    { tail -n 30 $(@D)/install.log; echo "npm failed; the whole log is $(@D)/install.log"; exit 1; }; \
	  touch $@; \
	fi
