# Everything runs from .venv, which the first target that needs it makes, of the Python that PYTHON names.
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name))))
PIP := .venv/bin/python -m pip --disable-pip-version-check
UV_INSTALL := .venv/bin/uv pip install -q --system-certs --python .venv/bin/python
# Locks are complete; pip would look for the hashes of extras, which they name without them.
LOCKED := --no-deps --require-hashes -r
UV_COMPILE := .venv/bin/uv pip compile -q --system-certs --universal --generate-hashes --no-emit-index-url --no-annotate \
  --python-version 3.11 --custom-compile-command "make lock"
# A strict editable install links single files, so a new or removed file needs it again.
FOLDERS := $(patsubst %/__init__.py,%,$(wildcard */__init__.py))
LINKED := .venv/.linked-$(shell find $(FOLDERS) -name '*.py' -o -name '*.yaml' | sort | cksum | cut -d' ' -f1)

.DEFAULT_GOAL := help
.PHONY: help install lock demo docs pictures test fuzz test-slow test-gpu test-tpu lint format proto benchmark clean

help:  ## print this list
	@awk -F ':.*## *' '/^[a-z-]+:.*##/ {printf "%-10s  %s\n", $$1, $$2}' Makefile

install: $(LINKED)  ## install gatokit and the locked packages into .venv, with uv or else with pip

.venv/.installed: requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "Python 3.11, 3.12 or 3.13 is needed: make PYTHON=/path/to/it")'
	test -d .venv || $(PYTHON) -m venv .venv
	awk '/^[a-z]/ {is_uv = /^uv==/} is_uv' requirements.lock > .venv/uv.lock
	if ! { $(PIP) install -q $(LOCKED) .venv/uv.lock && $(UV_INSTALL) $(LOCKED) requirements.lock; }; then \
	  echo "without uv, pip installs the packages, which takes minutes"; \
	  $(PIP) install -q $(LOCKED) requirements.lock; fi
	rm -f .venv/.linked-*
	touch $@

$(LINKED): .venv/.installed setup.py
	rm -rf build/__editable__.* .venv/.linked-*
	$(PIP) install -q --no-deps --no-build-isolation --config-settings editable_mode=strict -e .
	touch $@

lock: .venv/.installed  ## write all locks anew from setup.py, for all Pythons, keeping the versions that still fit
	$(UV_COMPILE) --extra demo --extra train --extra test setup.py -o requirements.lock
	echo setuptools | $(UV_COMPILE) -c requirements.lock --extra build --extra gcp setup.py - -o deploy/requirements.txt
	echo 'jax[cuda12]' | $(UV_COMPILE) -c requirements.lock - -o requirements-gpu.lock
	echo 'jax[tpu]' | $(UV_COMPILE) -c requirements.lock - -o requirements-tpu.lock
	echo 'atheris==3.0.0' | $(UV_COMPILE) - -o tests/fuzz/requirements.lock

# The tunable gives XLA's large buffers large pages, which saves a sixth of a step's time on CPUs.
demo: install  ## record, draw, scan, build, verify, inspect, train and play, in some eleven minutes on two cores
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 .venv/bin/gatokit demo --out demo

docs: install  ## write docs/config.md anew from the models of the configs
	.venv/bin/python docs/config_reference.py

pictures: install  ## make README's pictures of report and explorer from the demo; needs Chromium and chromedriver
	.venv/bin/python docs/pictures/pages.py demo

test: lint  ## lint, types, import contracts and tests
	.venv/bin/python -m pytest -n 2 --dist loadfile

FUZZED := folder manifest descriptions index vocabulary config compressed json_lines record example tfrecord tar header
fuzz: install  ## search for bytes that a reader cannot stand, ten minutes a reader; see tests/fuzz/run.py
	$(UV_INSTALL) $(LOCKED) tests/fuzz/requirements.lock
	for target in $(FUZZED); do .venv/bin/python tests/fuzz/run.py $$target 600 || exit 1; done

test-slow: install  ## the tests that take long
	.venv/bin/python -m pytest -m slow

test-gpu: install  ## the tests that need a GPU
	$(UV_INSTALL) $(LOCKED) requirements-gpu.lock
	.venv/bin/python -m pytest -m gpu

test-tpu: install  ## the tests that compile for TPU slices; they need no TPU
	$(UV_INSTALL) $(LOCKED) requirements-tpu.lock
	.venv/bin/python -m pytest -m tpu

lint: install  ## ruff, mypy and the import contracts
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy -p gatokit
	.venv/bin/lint-imports

format: install  ## let ruff mend and format the code
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

proto: install  ## compile schemas/record.proto
	.venv/bin/python -m grpc_tools.protoc -I schemas --python_out=schemas --pyi_out=schemas schemas/record.proto

benchmark: install  ## the benchmarks that README quotes
	.venv/bin/python benchmarks/episodes.py
	.venv/bin/python benchmarks/corpora.py
	.venv/bin/python benchmarks/robots.py
	.venv/bin/python benchmarks/loader.py

clean:  ## remove .venv, demo and everything built
	rm -rf .venv build demo *.egg-info
