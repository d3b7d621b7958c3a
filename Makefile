# What a fresh clone can do. Environments are made when they are first needed, and again only when
# requirements.txt or pyproject.toml have changed.

PYTHON ?= python3
CHROMIUM ?= $(or $(LIDIV_CHROMIUM),/usr/bin/chromium)
# Options for `lidiv demo`, e.g. make demo DEMO="--port-backend 9091"
DEMO ?=
# Empty for an audit that does without known vulnerabilities where nobody answers for them.
AUDIT ?= --require
# Options for pytest, e.g. make test PYTEST="-k clicks -x"
PYTEST ?=
# Files of tests run beside each other, one for each processor, and no more than so many.
MOST_AT_ONCE ?= 4

.DEFAULT_GOAL := help
.PHONY: help demo test test-browser soak lint lint-docker audit format docs pictures weights env-ml clean-environments

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/make \1|\2/' \
	  | awk -F'|' '{printf "%-22s %s\n", $$1, $$2}'

demo: .venv/.installed ## Try it: Label Studio, photos and the backend, until Ctrl+C
	@.venv/bin/lidiv demo $(DEMO)

test: .venv/.installed weights .venv-ml/.installed ## Run the tests, without browser and long runs
	LIDIV_ML_ENV=$(CURDIR)/.venv-ml OMP_NUM_THREADS=1 .venv/bin/python -m pytest \
	  -m "not browser and not soak" -n logical --maxprocesses $(MOST_AT_ONCE) --dist loadfile $(PYTEST)

test-browser: .venv/.installed-browser ## Click in a real Chromium against a real Label Studio
	@test -x "$(CHROMIUM)" || { echo "There is no Chromium at $(CHROMIUM): apt-get install" \
	  "chromium, or say where it is with CHROMIUM=..." >&2; exit 1; }
	.venv/bin/lidiv demo --prepare
	LIDIV_CHROMIUM=$(CHROMIUM) .venv/bin/python -m pytest -m browser tests/browser $(PYTEST)

soak: .venv/.installed weights ## Run the tests that take long
	.venv/bin/python -m pytest -m soak $(PYTEST)

lint: .venv/.installed ## Check style and types
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

lint-docker: .venv/.installed-audit ## Check the Dockerfile
	.venv/bin/hadolint Dockerfile

audit: .venv/.installed-audit ## Look for known vulnerabilities in what is installed, and for risky code
	.venv/bin/ruff check --select S lidiv_backend deploy
	.venv/bin/python -m pytest -q tests/test_exceptions.py
	.venv/bin/python -m pip check
	.ci/audit $(AUDIT)

docs: .venv/.installed-docs ## Make the documentation's pages, in site/
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --quiet --strict

pictures: .venv/.installed-browser ## Take the documentation's pictures of the real interface
	.venv/bin/lidiv demo --prepare
	LIDIV_PICTURES=$(CURDIR)/docs/pictures LIDIV_CHROMIUM=$(CHROMIUM) \
	  .venv/bin/python -m pytest -m browser tests/browser/test_prompts.py $(PYTEST)

format: .venv/.installed ## Put the code into shape
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

weights: .venv/.installed ## Fetch the pretrained encoders into the cache
	@.venv/bin/lidiv weights fetch || echo "Tests that need the encoders' weights will be skipped."

env-ml: .venv-ml/.installed ## Make the environment that the test of label-studio-ml needs

clean-environments: ## Delete the environments; the next target makes them again
	rm -rf .venv .venv-labelstudio .venv-ml

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or later is needed: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.installed: requirements.txt pyproject.toml | .venv/bin/python
	.venv/bin/python -m pip install --quiet --editable '.[dev]'
	@touch $@

.venv/.installed-browser: .venv/.installed
	.venv/bin/python -m pip install --quiet --editable '.[dev,browser]'
	@touch $@

.venv/.installed-docs: requirements.txt pyproject.toml | .venv/.installed
	.venv/bin/python -m pip install --quiet --editable '.[dev,docs]'
	@touch $@

.venv/.installed-audit: requirements.txt pyproject.toml | .venv/.installed
	.venv/bin/python -m pip install --quiet --editable '.[dev,audit]'
	@touch $@

# label-studio-ml 1.0.9 wants Flask 1.1.2, and does not name redis and rq: without its dependencies,
# and with what it needs to be imported, it runs on the packages of .venv.
.venv-ml/.installed: | .venv/bin/python
	.venv/bin/python -m venv .venv-ml
	.venv-ml/bin/python -m pip install --quiet --no-deps \
	  label-studio-ml==1.0.9 label-studio-tools colorama 'redis==8.*' 'rq==3.*'
	@touch $@
