# The project's habits. Every target sets up what it needs by itself; twice costs a moment.
#
#   make lab     JupyterLab whose kernels run in gVisor       make check   lint, types, layers
#   make demo    the same without a browser                   make test    all tests but the slow ones
#   make bench   speed beside plain host kernels              make clean   remove what was built here
#   make test-upstream   other projects' suites, with and without us
#
# PYTHON=...    the interpreter for .venv (3.11 or newer)
# LAB_DIR=...   the folder that `make lab` opens            LAB_ARGS=...   more arguments for it
# PYTEST=...    more arguments for the tests
# SUITES=...    which suites: jupyter_client nbclient ipykernel

SHELL := /bin/bash
BIN := .venv/bin
KERNEL := python3-torpor
LAB_DIR ?= examples
LAB_ARGS ?=
PYTEST ?=
SUITES ?=
# What has nothing to do with the rights of whoever runs it is not run a second time as another user.
ALIKE := $(addprefix tests/,unit/bridge unit/cli unit/daemon unit/guest unit/lifecycle unit/link unit/snapshot/remote \
	integration/bridge integration/daemon integration/guest/test_guest.py integration/stores e2e/test_chaos.py \
	e2e/test_fork.py e2e/test_hibernation_faults.py e2e/test_hibernation_model.py \
	e2e/test_live_state.py e2e/test_rollback.py e2e/test_stores.py e2e/test_stores_faults.py e2e/test_hibernation_alone.py \
	e2e/test_hibernation_cost.py e2e/test_hibernation_outside.py e2e/test_hibernation_races.py \
	e2e/test_hibernation_proof.py e2e/test_hibernation_steps.py e2e/test_stores_losses.py)

# Root must say that it means it, and a machine without a display has no browser to open.
LAB_FLAGS := $(if $(filter 0,$(shell id -u)),--allow-root) $(if $(DISPLAY)$(WAYLAND_DISPLAY),,--no-browser)

.DEFAULT_GOAL := help
.PHONY: help venv runsc kernel lab demo test test-user test-upstream slow check format bench clean

help:
	@sed -n '2,/^$$/s/^# \{0,1\}//p' Makefile

venv:
	@tools/venv.sh

runsc: venv
	@$(BIN)/torpor install-runsc >/dev/null

kernel: runsc
	@$(BIN)/torpor kernelspec install python3 --sys-prefix --replace >/dev/null

lab: kernel
	@echo "  opening $(LAB_DIR); new notebooks run in gVisor; the address is below; Ctrl-C twice ends it"
	@cd "$(LAB_DIR)" && exec "$(CURDIR)/$(BIN)/jupyter" lab $(LAB_FLAGS) \
		--ServerApp.root_dir="$$PWD" --MappingKernelManager.default_kernel_name=$(KERNEL) $(LAB_ARGS)

demo: kernel
	@$(BIN)/python tools/run_notebook.py examples/demo.ipynb --kernel $(KERNEL) --answer Ada

ifeq ($(PYTEST),)
test: runsc
	@tools/test.sh
else
test: runsc
	@REQUIRE_RUNSC=1 $(BIN)/python -m pytest -m "not slow" $(PYTEST)
	@if [[ $$(id -u) == 0 ]]; then $(MAKE) --no-print-directory test-user; fi
endif

# As root: what needs a real sandbox once more, as an ordinary user with nothing of root's.
test-user: runsc
	@tools/as_user.sh $(ALIKE:%=--ignore=%) $(PYTEST)

# Other projects' suites, unchanged: each must pass through Torpor what it passes without it.
test-upstream: runsc
	@tools/tick.sh "installing what these suites need" $(BIN)/python -m pip install \
		--disable-pip-version-check --no-input --progress-bar off -e '.[upstream]'
	@REQUIRE_RUNSC=1 $(BIN)/python -m tests.upstream.run --without $(SUITES)

slow: runsc
	@REQUIRE_RUNSC=1 $(BIN)/python -m pytest -m slow $(PYTEST)

check: venv
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: venv
	@$(BIN)/ruff check --fix --quiet || true
	@$(BIN)/ruff format

bench: runsc
	@$(BIN)/python -m tests.bench.spine
	@$(BIN)/python -m tests.bench.pool
	@$(BIN)/python -m tests.bench.sleep
	@$(BIN)/python -m tests.bench.stores

clean:
	@if [[ -x $(BIN)/torpor ]]; then $(BIN)/torpor daemon stop >/dev/null 2>&1 || \
		echo "  the daemon holds kernels, so it goes on: see torpor kernels"; fi
	@rm -rf .venv build dist .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "  removed .venv and what was built; runsc and logs stay in your home folder (torpor daemon status)"
