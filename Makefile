# Every chore of glmq; each installs what it needs by itself. `make` alone lists them.
# Python 3.11 or newer and make are all that is assumed.

PYTHON ?= python3
JOBS ?= 4
FUZZ_S ?= 120

VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
INSTALLED := $(VENV)/.installed
COMPILED := $(VENV)/.compiled
IMPORTED := cli.main, cli.stack, infra.migrate, services.api.app, services.dispatcher.main, services.webhook_sender.main, \
	services.ar_worker.worker, services.decoder_worker.worker

.DEFAULT_GOAL := help
.PHONY: help install demo up down status doctor test checks lint types imports unit fuzz format lock settings-doc train eval-miniature bench hooks clean

help: ## List every chore
	@echo "make CHORE, one of:"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "Variables: PYTHON=$(PYTHON), JOBS=$(JOBS) (test processes), TORCH_BACKEND=cpu (a smaller torch where there is no GPU)"

install: $(COMPILED) ## Make the environment in .venv; nothing to do unless the lock has changed

demo: $(COMPILED) ## Start the whole stack, draw two images, receive signed webhooks, stop it
	@$(BIN)/glmq demo

up: $(COMPILED) ## Start the whole stack and leave it running
	@$(BIN)/glmq up --detach

down: $(INSTALLED) ## Stop the stack
	@$(BIN)/glmq down

status: $(INSTALLED) ## Show the stack's processes, ports and health
	@$(BIN)/glmq status

doctor: $(INSTALLED) ## Look at what this machine has of what glmq needs
	@$(BIN)/glmq doctor

# Types are checked while the tests run, which leave a part of two cores idle.
test: $(INSTALLED) ## Everything that must hold: style, types, import contract, all tests on real servers
	@$(MAKE) --no-print-directory -j 2 checks unit

checks: lint types imports

lint: $(INSTALLED) ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED) ## Check types
	$(BIN)/mypy

imports: $(INSTALLED) ## Check who imports whom
	$(BIN)/lint-imports

# By file and by stack: what shares servers runs in one process (tests/conftest.py).
# With bytecode, whatever the shell says of it: all processes import the same.
unit: export PYTHONDONTWRITEBYTECODE :=
unit: $(COMPILED) ## Run the tests alone; ARGS="tests/unit -k grid" chooses some
	$(BIN)/pytest -q -n $(JOBS) --dist loadfile $(ARGS)

fuzz: $(INSTALLED) ## Hold the API against its OpenAPI document by random requests to every route; FUZZ_S=600 is each phase's time
	FUZZ_S=$(FUZZ_S) $(BIN)/pytest -q --timeout=$$(($(FUZZ_S) + 300)) tests/integration/api/test_schemathesis.py

format: $(INSTALLED) ## Mend style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The overrides keep torch out: its build depends on the machine, and so does its hash.
lock: $(UV) ## Lock what pyproject.toml asks for; ARGS=--upgrade takes the newest
	$(UV) pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
		--overrides infra/lock-overrides.txt --generate-hashes -q -o requirements.lock $(ARGS)
	infra/docker/make-locks.sh

settings-doc: $(INSTALLED) ## Write docs/settings.md from the settings classes
	$(BIN)/python -m infra.settings_doc

# Hours on one core. Stopped and started again, it goes on from the last snapshots in build/train.
train: $(INSTALLED) ## Train the miniature checkpoint from scratch; ARGS="layout --minutes 5" trains one stage
	OMP_NUM_THREADS=1 $(BIN)/python -m checkpoints.train $(or $(ARGS),all)

eval-miniature: $(INSTALLED) ## Measure the miniature on held-out prompts and edits; ARGS="--only 20" measures fewer
	OMP_NUM_THREADS=1 $(BIN)/python -m checkpoints.evaluate --processes $(JOBS) $(ARGS)

# 35 minutes on two quiet cores, and only there do the figures mean anything. One thread, as each worker has.
bench: $(INSTALLED) ## Measure glmq against the reference and its bounds; ARGS="queue" measures one thing (ar, decoder, service, queue, fairness, submit, webhooks)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m infra.bench $(ARGS)

hooks: $(INSTALLED) ## Run the style checks before every commit
	$(BIN)/pre-commit install

clean: ## Remove the environment and the caches; the data in .glmq stays
	rm -rf $(VENV) *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "glmq needs Python 3.11 or newer, and '$(PYTHON)' is: $$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q uv==0.13.9

# torch is not in the lock: here it comes from PIP_FIND_LINKS, which uv does not read by itself, elsewhere from PyPI.
# Without dependencies and by hash: the lock is whole, and nothing else gets in.
$(INSTALLED): requirements.lock pyproject.toml | $(UV)
	UV_FIND_LINKS="$${PIP_FIND_LINKS:-}" $(UV) pip install -q --python $(BIN)/python torch==2.13.0 $(if $(TORCH_BACKEND),--torch-backend=$(TORCH_BACKEND))
	$(UV) pip install -q --python $(BIN)/python --no-deps --require-hashes -r requirements.lock
	$(UV) pip install -q --python $(BIN)/python --no-deps -e .
	@touch $@

# What the processes import, which is a third of what was installed: where PYTHONDONTWRITEBYTECODE is set, each would compile it anew.
$(COMPILED): $(INSTALLED)
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -c "import $(IMPORTED)" > $@.log 2>&1 || { cat $@.log; exit 1; }
	@mv $@.log $@
