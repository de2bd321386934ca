# Everything a person or CI runs, on a machine with only Python 3.11 and make. The environment is built once, from pinned
# versions, and again whenever pyproject.toml or constraints.txt change.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
WORKERS ?= 4
# A file's tests run in one worker: they share federations and emulators, which take seconds to start.
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
PIP_VERSION := 26.3
TORCH_VERSION := $(shell sed -n 's/^torch==//p' constraints.txt)

AZURITE_VERSION := 3.37.0
AZURITE := .azurite/.installed-$(AZURITE_VERSION)

BIN := .venv/bin
STAMP := .venv/.installed
CODE := messages orchestrator silo_agent silobus servicebus_emulator examples benchmarks deploy tests
TOOLS := dist/tools

# Tests start hundreds of processes, and four workers read all of the tests: each would compile everything anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test check guards crash-points lint format schema constraints rights sbom audit azurite test-azurite soak sdk-suite peers install clean
.DELETE_ON_ERROR:

help:            ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/:/' | awk -F: '{printf "  make %-12s %s\n", $$1, $$2}'

demo: $(STAMP)   ## Three hospitals train one model, on this machine, in seconds
	$(BIN)/silobus demo

test: lint       ## Every check and every test
	$(PYTEST)

check: lint      ## Every check and the quick tests, for while you work
	$(PYTEST) tests/unit

guards: $(STAMP) ## Removes each guard in a copy and sees its test fail (a quarter of an hour)
	$(BIN)/python -m tests.guards -n $(WORKERS)

crash-points: $(STAMP) ## Every crash point of small runs, and every pair in the smallest (an hour and a half)
	$(BIN)/python -m tests.crash_points
	$(BIN)/python -m tests.crash_points --pairs

lint: $(STAMP)   ## Format, lint, types and architecture
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/python -m mypy
	$(BIN)/python -m mypy -p deploy
	$(BIN)/lint-imports

format: $(STAMP) ## Formats the code and sorts its imports
	$(BIN)/ruff check --fix-only --quiet $(CODE)
	$(BIN)/ruff format $(CODE)

test-azurite: $(STAMP) $(AZURITE) ## The Blob store against Azurite, which npm installs into .azurite
	SILOBUS_AZURITE=required $(PYTEST) tests/contract/test_store*.py tests/unit/stores tests/e2e/test_azurite.py

azurite: $(AZURITE)  ## Installs Azurite, Microsoft's own Blob service for one machine, into .azurite

# The version is in the name, so that another one is installed anew.
$(AZURITE):
	@command -v npm >/dev/null || { echo "Node 22 with npm is needed for Azurite: install it from your system's packages"; exit 1; }
	rm -rf .azurite
	npm install --prefix .azurite --no-save --no-audit --no-fund --loglevel=error azurite@$(AZURITE_VERSION)
	@touch $@

soak: $(STAMP)   ## The embedded Service Bus killed 100 times under load
	SILOBUS_KILLS=100 $(BIN)/python -m pytest -s tests/e2e/test_emulator_kill.py

sdk-suite: $(STAMP) ## The Azure SDK's own queue tests, downloaded, against the embedded Service Bus
	$(BIN)/python -m tests.sdk_suite

peers: $(STAMP)  ## Flower and NVIDIA FLARE, each in an environment of its own in .peers, for benchmarks.peers
	$(BIN)/python -m benchmarks.peers.environments

schema: $(STAMP) ## Writes docs/schemas/messages.json from the code
	$(BIN)/silobus schema --write

rights: $(STAMP) ## Writes deploy/azure/rights.json and the table beside it from messages/rights.yaml
	$(BIN)/python -m deploy.azure.rights

sbom: $(TOOLS)/.installed ## Writes dist/sbom*.json, what an image is made of, as CycloneDX; EXTRAS=demo or azureml as for the agent's
	rm -rf dist/runtime
	"$(PYTHON)" -m venv dist/runtime
	dist/runtime/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt '.$(if $(EXTRAS),[$(EXTRAS)])'
	$(TOOLS)/bin/cyclonedx-py environment dist/runtime/bin/python --pyproject pyproject.toml \
	  --output-format JSON --output-file 'dist/sbom$(if $(EXTRAS),-$(EXTRAS)).json'

audit: $(TOOLS)/.installed ## Looks up every pinned version among known vulnerabilities
	$(TOOLS)/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip

# In an environment of their own: what they need is no part of what they look at.
$(TOOLS)/.installed:
	"$(PYTHON)" -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check 'cyclonedx-bom>=6,<8' 'pip-audit>=2.9,<3'
	@touch $@

install: $(STAMP) ## The environment in .venv, and nothing else

# pip is brought to a known version first: the one that comes with Python 3.11 fails to resolve this set.
# torch goes first and alone, since it is by far the largest: when it cannot be had, that is what the error says.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 is needed: install it, or say where: make PYTHON=/path/to/python3.11"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; $(PYTHON) is older. Say where it is: make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'pip==$(PIP_VERSION)'
	$(BIN)/python -m pip install --quiet -c constraints.txt 'torch==$(TORCH_VERSION)'
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[demo,dev,azureml]'
	@touch $@

constraints:     ## Writes constraints.txt from what is installed now
	{ sed -n '/^#/p' constraints.txt; \
	  $(BIN)/python -m pip freeze --exclude-editable | grep -v -i -E '^(silobus|uv)\b|^#' | sed 's/+[a-z0-9.]*$$//'; } > constraints.new
	mv constraints.new constraints.txt

clean:           ## Removes the environment and everything that was built
	rm -rf .venv .azurite .peers .silobus dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
