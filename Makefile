# make help says what there is. Everything works in a fresh clone: what a target needs is set up first, inside the clone.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
unexport PYTHONDONTWRITEBYTECODE  # some containers set it: each of the thousands of commands that tests run would compile anew
.PHONY: help setup demo test lint format bench delivery delivery-page soak fuzz docs lock system-parts clean

PY := .venv/bin/python
PYTEST := $(PY) -m pytest
LOCKED := tools/setup pyproject.toml runtime/pyproject.toml hatch_build.py
RINGS ?= unit contract fuzz system stories
FUZZ_SECONDS ?= 600
SOAK_SECONDS ?= 3600
JOBS ?= $(shell n=$$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); echo $$((n < 4 ? n : 4)))

# Debian packages the tests use: a registry, another client of it and certificates for it; a browser; what LightGBM links to.
# Brokers that streams are tried with, and what fetches and runs Kafka and a schema registry (NATS is built with go, where it is).
BROKERS := redis-server mosquitto rabbitmq-server openjdk-17-jre-headless maven
SYSTEM_PARTS := docker-registry skopeo openssl chromium libgomp1 $(BROKERS)
BENCH_PARTS := wrk util-linux libgomp1

help: ## show this
	@if [ -t 1 ]; then b=$$(printf '\033[1m'); n=$$(printf '\033[0m'); fi; \
	echo "$${b}MLPacker$${n}: pack a trained pipeline once, run it anywhere."; echo; \
	sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | \
	while IFS="$$(printf '\t')" read -r name text; do printf '  %smake %-13s%s %s\n' "$$b" "$$name" "$$n" "$$text"; done; \
	echo; echo "  make test RINGS=unit ARGS='-k batch'   one ring, some tests (JOBS=0: in one process)"; \
	echo "  MLPACKER_NO_SYSTEM_PARTS=1 make test   installs no Debian packages; tests that want them are skipped"

demo: .venv/.run ## pack, serve, score and stream a model, kill it, and count (under 2 minutes)
	@$(PY) examples/demo.py

test: .venv/.dev system-parts ## all tests; as root on Debian, installs the system parts they want
	@MLPACKER_FUZZ_SECONDS=$${MLPACKER_FUZZ_SECONDS:-30} $(PYTEST) -n $(JOBS) $(wildcard $(RINGS:%=tests/%)) $(ARGS)

lint: .venv/.dev ## style, imports, types
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	@.venv/bin/lint-imports --no-logo --no-cache
	$(PY) -m mypy
	@set -e; for check in tools/check_*.py; do if [ -e "$$check" ]; then echo "$(PY) $$check"; $(PY) "$$check"; fi; done

format: .venv/.dev ## let ruff mend what it can
	$(PY) -m ruff check --fix
	$(PY) -m ruff format

bench: .venv/.dev ## compare with other servers, side by side
	@MLPACKER_PARTS="$(BENCH_PARTS)" tools/system-parts
	@$(PY) benchmarks/run.py $(ARGS)

delivery: .venv/.dev ## what is lost: each broker and each fault in a run of its own (ARGS='--broker kafka --fault swap')
	@MLPACKER_PARTS="$(BROKERS)" tools/system-parts
	@$(PY) -m mlpacker.testing.delivery --cells $(ARGS)

delivery-page: .venv/.dev ## the same in one run a broker, written into docs/reference/delivery.md
	@MLPACKER_PARTS="$(BROKERS)" tools/system-parts
	@$(PY) -m mlpacker.testing.delivery --page docs/reference/delivery.md $(ARGS)

soak: .venv/.dev ## ledger runs with new seeds, for as long as asked (SOAK_SECONDS=3600)
	@MLPACKER_PARTS="$(BROKERS)" tools/system-parts
	@$(PY) -m mlpacker.testing.delivery --seconds $(SOAK_SECONDS) $(ARGS)

fuzz: .venv/.dev ## ten minutes of random input for the decoders and readers (FUZZ_SECONDS=600)
	@MLPACKER_FUZZ_SECONDS=$(FUZZ_SECONDS) $(PYTEST) -m fuzz $(ARGS)

docs: .venv/.dev ## write the reference pages anew, from the code
	@set -e; for script in tools/docs_*.py; do if [ -e "$$script" ]; then echo "$(PY) $$script"; $(PY) "$$script"; fi; done

setup: .venv/.dev ## make .venv for working on the code

lock: .venv/.run ## lock newer versions of what .venv holds
	tools/lock --upgrade

clean: ## remove .venv, caches and builds
	rm -rf .venv .tools .tools.new .cache .bench .demo .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist

system-parts:
	@MLPACKER_PARTS="$(SYSTEM_PARTS)" tools/system-parts

.venv/.run: $(LOCKED) tools/locked/run.txt
	@tools/setup run
	@touch $@

.venv/.dev: $(LOCKED) tools/locked/run.txt tools/locked/dev.txt
	@tools/setup dev
	@touch .venv/.run $@
