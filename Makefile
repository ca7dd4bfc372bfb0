# The one door to the workshop. Each target brings the machine from nothing to what it needs; a second call is quick.
# Settings: PYTHON=python3.12 (any CPython >= 3.11) and ARGS="..." (passed on by `test`, `serve` and `bench`).

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
CREATED := $(VENV)/.created
INSTALLED := $(VENV)/.installed
EXAMPLES := $(VENV)/.examples

# What scripts/build_examples.py leaves behind; if one is gone the examples are built again.
EXAMPLE_FILES := examples/digits/model.onnx examples/minilm/model.onnx examples/minilm/tokenizer.json

.PHONY: help setup serve test check fmt bench bench-fidelity bench-limiters FORCE

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(EXAMPLES) ## Create .venv, install everything, build the example models

serve: $(EXAMPLES) ## Serve the example models: inference on :8000, admin and metrics on :8002
	@exec $(BIN)/penstock serve examples/quickstart.toml $(ARGS)

test: $(EXAMPLES) ## Run every test (ARGS="-k name" for some)
	$(call need_command,curl,curl)
	$(call need_command,redis-server,redis-server)
	@exec $(BIN)/python -m pytest $(ARGS)

check: $(INSTALLED) ## Run the strict checks: ruff, mypy, import law, house rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest tests/tidy -q

fmt: $(INSTALLED) ## Format the code and apply the safe fixes
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

bench: $(EXAMPLES) ## Run the benchmarks, each beside its yardstick in the same run (ARGS="open kill" for some)
	$(call need_command,wrk,wrk)
	$(call need_command,redis-server,redis-server)
	@exec $(BIN)/python -m bench.run $(ARGS)

bench-fidelity: $(EXAMPLES) ## Compare the simulator with the live server on ten emulated fleets (ARGS=--quick: three)
	@exec $(BIN)/python -m bench.fidelity $(ARGS)

bench-limiters: $(INSTALLED) ## Compare limiters of other libraries with ours over one Redis (ARGS=--quick: see that it runs)
	$(call need_command,redis-server,redis-server)
	@exec $(BIN)/python -m bench.limiters.run $(ARGS)

# Install Debian package $(1), or stop with the one command that does.
define apt_install
if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	echo "installing the system package $(1)"; \
	export DEBIAN_FRONTEND=noninteractive; \
	apt-get install -y --no-install-recommends $(1) >/dev/null 2>&1 \
	|| { apt-get update -qq && apt-get install -y -qq --no-install-recommends $(1); } \
	|| { echo "penstock: apt-get could not install $(1); install it, then run make again" >&2; exit 1; }; \
else \
	echo "penstock: a system package is missing. Run:  sudo apt-get install $(1)  and then make again" >&2; exit 1; \
fi
endef

# Make sure command $(1), of Debian package $(2), is on PATH.
define need_command
@command -v $(1) >/dev/null || { $(call apt_install,$(2)); }
endef

$(CREATED):
	@command -v $(PYTHON) >/dev/null || { echo "penstock: $(PYTHON) not found; install python3 or set PYTHON" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "penstock: needs Python >= 3.11, got $$($(PYTHON) --version 2>&1); run:  make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; \
		exit 1; }
	@if ! $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then \
		package=$$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'); \
		$(call apt_install,$$package); \
	fi
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		echo "creating $(VENV) with $$($(PYTHON) --version)"; \
		$(PYTHON) -m venv --clear $(VENV); \
	fi
	@touch $@

$(INSTALLED): $(CREATED) pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[onnx,examples,dev,report]'
	@touch $@

ifneq ($(words $(wildcard $(EXAMPLE_FILES))),$(words $(EXAMPLE_FILES)))
$(EXAMPLES): FORCE
endif
$(EXAMPLES): $(INSTALLED) scripts/build_examples.py $(wildcard examples/*/train.py examples/*/build.py)
	$(BIN)/python scripts/build_examples.py
	@touch $@

FORCE:
