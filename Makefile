# SPDX-License-Identifier: Apache-2.0
# You need make, and python3 with venv. The targets install Python packages into .venv.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Three workers for two processors, because tests spend a third of their time waiting.
WORKERS ?= $(shell echo $$(($$(nproc) * 3 / 2)))

# The sources of the libraries in the package.
NATIVE := native/shim.c native/snpcerts.c native/include/snpcerts.h native/kvm_abi.h

.PHONY: help demo docs test test-clients test-vmms test-browser test-crashes test-orders test-hosts test-kernel test-mutants test-qemu test-packages packages soak explore fuzz lint bench clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: $(VENV)/.run ## Guests, firmware and updates at work, without SNP hardware
	$(BIN)/snpcerts demo $(ARGS)

test: $(VENV)/.dev ## All tests
	$(BIN)/pytest -n $(WORKERS) --dist worksteal $(ARGS)

test-clients: $(VENV)/.dev ## Other projects' programs, and the examples in Rust and Go, on the emulated platform
	SNPCERTS_CLIENTS=1 $(BIN)/pytest tests/clients $(ARGS)

test-orders: $(VENV)/.dev ## Every order of an operator's commands and SIGKILL; resumes where it was stopped
	@mkdir -p build
	$(BIN)/python -m tests.host.orders build/orders.log $(ARGS)

test-vmms: $(VENV)/.dev ## The right and wrong VMMs, 50 times; resumes where it was stopped
	@mkdir -p build
	$(BIN)/python -m tests.conformance.rounds build/rounds.log $(ARGS)

test-hosts: $(VENV)/.dev ## Other projects' programs, QEMU and conformance on every kernel and firmware; resumes where it was stopped
	tests/qemu/fetch.sh
	@mkdir -p build
	$(BIN)/python -m tests.every_host build/hosts.log $(ARGS)

test-crashes: $(VENV)/.dev ## Host commands, killed before each system call that changes something
	SNPCERTS_CRASHES=changing $(BIN)/pytest tests/host/test_command_crash.py $(ARGS)

test-kernel: $(VENV)/.dev ## Numbers and the emulator compared with released kernels; their selftests on the emulator
	tests/kernel/fetch.sh
	SNPCERTS_KERNEL_TESTS=1 $(BIN)/pytest tests/kernel $(ARGS)

test-mutants: $(VENV)/.dev ## Changes that the comparison with released kernels misses; resumes where it was stopped
	tests/kernel/fetch.sh
	@mkdir -p build
	$(BIN)/python -m tests.kernel.mutants build/mutants.log $(ARGS)

test-qemu: $(VENV)/.dev ## Stock QEMU with the shim, on this machine's KVM made to look like SNP
	tests/qemu/fetch.sh
	SNPCERTS_QEMU_TESTS=1 $(BIN)/pytest tests/qemu $(ARGS)

test-packages: $(VENV)/.dev ## A release's packages, installed on bare Debian systems
	tests/packages/fetch.sh
	SNPCERTS_PACKAGE_TESTS=1 $(BIN)/pytest tests/packages $(ARGS)

packages: $(VENV)/.packages ## Build a release into dist: wheel, .deb, .rpm, SBOM
	$(BIN)/python packaging/build.py dist

test-browser: $(VENV)/.docs ## The fleet's page and the site in Debian's Chromium, which this downloads
	tests/browser/fetch.sh
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'playwright>=1.50'
	SNPCERTS_BROWSER_TESTS=1 $(BIN)/pytest tests/browser $(ARGS)

soak: $(VENV)/.dev ## A VM with the shim under load, updates and kicks; ARGS="--seconds N"
	$(BIN)/python -m tests.shim.soak $(ARGS)

explore: $(VENV)/.dev ## Every interleaving and crash of the certificate file's protocol
	$(BIN)/python -m explore $(ARGS)

fuzz: $(VENV)/.dev ## Hostile input for every parser and the verifier
	$(BIN)/python -m fuzz $(ARGS)

lint: $(VENV)/.dev ## Style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/.docs ## Guides and API reference as one site, build/site/docs/site/index.html
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going \
		--conf-dir docs/site --builder html . build/site

bench: $(VENV)/.dev ## Timings, side by side in one run
	$(BIN)/python -m bench $(ARGS)

clean: ## Remove everything that the targets created here
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(BIN)/python pyproject.toml hatch_build.py $(NATIVE)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml hatch_build.py $(NATIVE)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,mirror]'
	@touch $@ $(VENV)/.run

$(VENV)/.packages: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[packages]'
	@touch $@

$(VENV)/.docs: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@touch $@
