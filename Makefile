# Every target makes the environment it needs; nothing has to be activated or installed first.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
LISTEN ?= 127.0.0.1:7450
DATA ?= ./milepost-data
# More arguments for pytest or the benchmarks: `make test ARGS='-k fork'`.
ARGS ?=
# Tests at once; 0: in one process, as `ARGS=--pdb` and `ARGS=-s` want it.
JOBS ?= 2
# What `check` compares the wire contract with: the last release, else what others have seen, else the last commit;
# `make check PROTO_BASE=HEAD` compares with another, `PROTO_BASE=` with none.
PROTO_BASE ?= $$(git describe --tags --abbrev=0 2>/dev/null) origin/main HEAD

BIN := .venv/bin
PYTEST = $(BIN)/python -m pytest -n $(JOBS) --dist worksteal
SOURCES := $(wildcard client server tests tools benchmarks examples)
# The floors that pyproject.toml promises, for test-compat.
LOWEST := grpcio==1.76.0 protobuf==6.31.1 lmdb==3.0.0 grpcio-health-checking==1.76.0 grpcio-reflection==1.76.0 \
	opentelemetry-api==1.20.0 click==8.1.0 msgspec==0.19.0 langgraph-checkpoint==4.1.0

# $(call make_venv,folder,what for,pip arguments): make or update an environment and mark it done. pip writes to a log,
# which is shown if it fails, so that stdout stays with the command the environment is for. A comma that is none of
# make's is $(,).
, := ,
define make_venv
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	|| { echo "milepost needs Python 3.11 or newer; name one with: make PYTHON=python3.12" >&2; exit 1; }
@echo "setup: installing $(2) into $(1)" >&2
@$(PYTHON) -m venv $(1) >&2
@{ $(1)/bin/python -m pip install --quiet --upgrade 'pip>=25.1' \
	&& $(1)/bin/python -m pip install --quiet $(3); } >$(1)/install.log 2>&1 \
	|| { cat $(1)/install.log >&2; exit 1; }
@touch $(1)/.stamp
endef

# $(call step,name,command): one line for a step, and what it printed only if it failed.
step = @echo "check: $(1)"; out=$$($(2) 2>&1) || { printf '%s\n' "$$out" >&2; exit 1; }

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-22s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  Settings: LISTEN=$(LISTEN) DATA=$(DATA) PYTHON=$(PYTHON) ARGS= (for pytest and bench) JOBS=$(JOBS)"

run: .venv/.stamp ## Start a server on LISTEN with its data in DATA; Ctrl-C drains and stops it
	@exec $(BIN)/milepost-server serve --listen "$(LISTEN)" --data-dir "$(DATA)"

test: test-fast test-slow ## Run all tests: the fast tier, then the slow one

test-fast: .venv/.stamp ## Run the tests that take less than a second each
	@$(PYTEST) -m "not slow" $(ARGS)

test-slow: .venv/.stamp ## Run the slow tests: kills, faults, big stores, long random runs
	@$(PYTEST) -m slow $(ARGS) || [ $$? -eq 5 ] # 5: ARGS chose no slow test

test-compat: .venv-lowest/.stamp ## Run tests/compat on the lowest and on the newest libraries we promise to support
	@echo "test-compat: lowest: $(LOWEST)"
	@.venv-lowest/bin/python -m pytest tests/compat tests/langgraph/test_conformance.py -q $(ARGS)
	$(call make_venv,.venv-newest,milepost[server] on the newest releases,--upgrade --upgrade-strategy eager --group test --group langgraph -e '.[server$(,)langgraph]')
	@echo "test-compat: newest: $$(.venv-newest/bin/python -m pip list --format=freeze 2>/dev/null | grep -E '^(grpcio|protobuf|lmdb)=' | tr '\n' ' ')"
	@.venv-newest/bin/python -m pytest tests/compat tests/langgraph/test_conformance.py -q $(ARGS)

CHECKS := format lint types imports protos breaking generated tree
check: $(CHECKS:%=check-%) ## Run every check that needs no server: format, lint, types, imports, protos, generated files, tree

check-format: .venv/.stamp
	$(call step,ruff format,$(BIN)/ruff format --check --diff $(SOURCES))

check-lint: .venv/.stamp
	$(call step,ruff check,$(BIN)/ruff check $(SOURCES))

check-types: .venv/.stamp
	$(call step,mypy --strict,$(BIN)/mypy $(SOURCES))

check-imports: .venv/.stamp
	$(call step,import contracts,$(BIN)/lint-imports --no-logo)

check-protos: .venv/.stamp
	$(call step,buf lint,$(BIN)/buf lint)

# The first of PROTO_BASE that holds protos wins. It is read with git archive, which also works in a shallow clone and
# in a worktree.
check-breaking: .venv/.stamp
	@for ref in $(PROTO_BASE); do \
		git cat-file -e "$$ref:protos" 2>/dev/null && git cat-file -e "$$ref:buf.yaml" 2>/dev/null || continue; \
		echo "check: buf breaking against $$ref"; \
		base=$$(mktemp -d) && trap 'rm -rf "$$base"' EXIT || exit 1; \
		git archive --format=tar --output="$$base/base.tar" "$$ref" buf.yaml protos || exit 1; \
		$(BIN)/buf breaking --against "$$base/base.tar" >&2; exit; \
	done; echo "check: buf breaking: nothing earlier to compare with"

check-generated: .venv/.stamp .venv-gen/.stamp
	$(call step,generated wire code,.venv-gen/bin/python tools/gen_protos.py --check)
	$(call step,generated blocking client,$(BIN)/python tools/unasync.py --check)

check-tree: .venv/.stamp
	$(call step,tree,$(BIN)/python tools/check_tree.py)

fmt: .venv/.stamp ## Format the sources and apply the safe fixes
	@$(BIN)/ruff check --fix --quiet --exit-zero $(SOURCES)
	@$(BIN)/ruff format $(SOURCES)

gen: .venv/.stamp .venv-gen/.stamp ## Generate the wire code from protos/ and the blocking client from the async one
	@.venv-gen/bin/python tools/gen_protos.py
	@$(BIN)/python tools/unasync.py

bench: .venv/.stamp .venv/.stamp-dbos ## Measure throughput, latency and the runner on this machine
	@$(BIN)/python -m benchmarks $(ARGS)

conformance-langgraph: .venv/.stamp ## Run LangGraph's official conformance suite on MilepostSaver, both halves
	@$(BIN)/python -m pytest tests/langgraph/test_conformance.py -s -q $(ARGS)

bench-langgraph: .venv-bench/.stamp ## Measure MilepostSaver beside PostgresSaver, SqliteSaver and InMemorySaver
	@.venv-bench/bin/python -m benchmarks.langgraph_savers $(ARGS)

demo: .venv/.stamp ## Kill a worker and the server at work, and watch another worker go on
	@$(BIN)/python examples/crash_and_resume.py

clean: ## Remove environments, caches and build output; DATA stays
	@rm -rf .venv .venv-gen .venv-bench .venv-lowest .venv-newest build dist
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	@find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.stamp: pyproject.toml
	$(call make_venv,.venv,milepost with all extras and its tools,--group test --group langgraph --group check --group bench -e '.[all]')

# What the runner is compared with. Without it the benchmark leaves those figures out, and says so.
.venv/.stamp-dbos: .venv/.stamp
	@echo "setup: installing DBOS, to compare with, into .venv" >&2
	@$(BIN)/python -m pip install --quiet --group bench-dbos >.venv/install-dbos.log 2>&1 \
		|| echo "setup: DBOS could not be installed; .venv/install-dbos.log says why" >&2
	@touch $@

.venv-bench/.stamp: pyproject.toml
	$(call make_venv,.venv-bench,milepost and the savers to compare it with,--group langgraph --group bench --group bench-langgraph -e '.[server$(,)zstd$(,)langgraph]')

.venv-gen/.stamp: pyproject.toml
	$(call make_venv,.venv-gen,the code generators,--group gen)

.venv-lowest/.stamp: pyproject.toml Makefile
	$(call make_venv,.venv-lowest,milepost[server] on its lowest supported libraries,--group test -e '.[server$(,)langgraph]' langgraph-checkpoint-conformance==0.0.2 $(LOWEST))

.PHONY: help run test test-fast test-slow test-compat check $(CHECKS:%=check-%) fmt gen bench bench-langgraph conformance-langgraph demo clean
