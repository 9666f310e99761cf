# Everything runs from .venv, which the first target that needs it makes.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
FOLDERS := schemas tokenizers storage pipelines inspection loader trainer policy evaluation environments cli
# A strict editable install links single files, so a new or removed file needs it again.
LINKED := .venv/.linked-$(shell find $(FOLDERS) -name '*.py' -o -name '*.yaml' | sort | cksum | cut -d' ' -f1)
PIP := .venv/bin/python -m pip --disable-pip-version-check

.PHONY: install demo pictures test fuzz test-slow test-gpu test-tpu lint format proto benchmark clean

install: $(LINKED)

.venv/.installed: setup.py constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "gatokit needs Python 3.11: make PYTHON=/path/to/python3.11")'
	test -d .venv || $(PYTHON) -m venv .venv
	$(PIP) install -q -c constraints.txt pip setuptools wheel
	$(PIP) install -q -c constraints.txt --no-build-isolation --config-settings editable_mode=strict -e '.[demo,train,test]'
	rm -f .venv/.linked-*
	touch $@

$(LINKED): .venv/.installed
	rm -rf build/__editable__.* .venv/.linked-*
	$(PIP) install -q --no-deps --no-build-isolation --config-settings editable_mode=strict -e .
	touch $@

# The tunable gives XLA's large buffers large pages, which saves a sixth of a step's time on CPUs.
demo: install
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 .venv/bin/gatokit demo --out demo

# The README's pictures of the report and of the explorer, from the demo's folder; needs Chromium and chromedriver.
pictures: install
	.venv/bin/python docs/pictures/pages.py demo

test: lint
	.venv/bin/python -m pytest -n 2 --dist loadfile

# Searches for bytes that a reader cannot stand, ten minutes a reader; see tests/fuzz/run.py.
fuzz: install
	$(PIP) install -q -c constraints.txt atheris
	for target in record example tfrecord tar header; do .venv/bin/python tests/fuzz/run.py $$target 600 || exit 1; done

test-slow: install
	.venv/bin/python -m pytest -m slow

test-gpu: install
	$(PIP) install -q -c constraints.txt 'jax[cuda12]'
	.venv/bin/python -m pytest -m gpu

test-tpu: install
	$(PIP) install -q -c constraints.txt 'jax[tpu]'
	.venv/bin/python -m pytest -m tpu

lint: install
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy $(FOLDERS:%=-p gatokit.%)
	.venv/bin/lint-imports

format: install
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

proto: install
	.venv/bin/python -m grpc_tools.protoc -I schemas --python_out=schemas --pyi_out=schemas schemas/record.proto

benchmark: install
	.venv/bin/python benchmarks/episodes.py
	.venv/bin/python benchmarks/corpora.py
	.venv/bin/python benchmarks/loader.py

clean:
	rm -rf .venv build demo *.egg-info
