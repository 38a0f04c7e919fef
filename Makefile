# Every target makes what it needs: a virtual environment with everything pinned by constraints.txt.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
EXTRAS ?= operator,worker,cpu,dev
CACHE ?= .cache
RUN ?= runs/demo
E2E ?= tests/e2e
# Units run in two processes, and so do the tests of the cluster, with a control plane for each; the tests of a file stay together.
# Those that run a trainer are given out one by one, because most of them are in one file.
PARALLEL ?= -n 2 --dist loadfile
PARALLEL_TRAINERS ?= -n 2 --dist worksteal
PARALLEL_CLUSTER ?= $(if $(KUBECONFIG),,$(PARALLEL))
MODEL := $(CACHE)/models/smollm2-135m-instruct

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  \033[1m%-16s\033[0m %s\n", $$1, $$2}'

$(VENV)/.installed: pyproject.toml constraints.txt overrides.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "SpinRun needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) -V): set PYTHON=" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments: install its venv package (Debian: apt-get install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --override overrides.txt --editable '.[$(EXTRAS)]'
	touch $@

.PHONY: install
install: $(VENV)/.installed ## Make the virtual environment

$(MODEL)/config.json: | $(VENV)/.installed
	$(BIN)/spinrun model smollm2 --output $(MODEL)

.PHONY: demo
demo: $(VENV)/.installed $(MODEL)/config.json ## Train a real 135M model on arithmetic, on two CPU cores, in under ten minutes
	$(BIN)/spinrun local examples/demo.yaml --set spec.model.source=$(abspath $(MODEL)) --output $(RUN) --again

.PHONY: quickstart
quickstart: $(VENV)/.installed $(MODEL)/config.json ## The demo on Kubernetes: cluster, images, Helm, a run, its report (root and Go, or KUBECONFIG)
	PATH=$(abspath $(BIN)):$$PATH tools/quickstart $(MODEL)

# pytest writes what it skipped, and why, to a file for each target.
LEFT_OUT ?= $(CACHE)/left-out
PYTEST = SPINRUN_LEFT_OUT=$(LEFT_OUT)/$@ $(BIN)/pytest
# Dashboards and alerts are tested with Prometheus: from Debian's package, where neither PATH nor the environment has it yet.
PROMETHEUS := $(if $(shell command -v prometheus && command -v promtool),,$(BIN)/prometheus)

.PHONY: test
test: test-engine test-cluster ## Run all tests but those with real pods, and say what was left out
	@echo "left out:"
	@cd $(LEFT_OUT) && grep '' test-units test-trainers test-vllm test-cluster | sed 's/^/  /; s/:/: /' || true
	@echo "  tests with real pods: make e2e and make test-node (root and Go)"
	@echo "  two windows of each recipe of examples/: make examples-smoke"

.PHONY: test-engine
test-engine: test-units test-trainers test-vllm ## Run the units, and the engine with a real vLLM and a real torchrun

.PHONY: test-units
test-units: $(VENV)/.installed | $(PROMETHEUS)
	$(PYTEST) tests/unit -m "not cluster" $(PARALLEL) $(PYTEST_ARGS)

.PHONY: test-trainers
test-trainers: $(VENV)/.installed | $(PROMETHEUS)
	$(PYTEST) tests/integration -m "not cluster and not e2e and not engine" $(PARALLEL_TRAINERS) $(PYTEST_ARGS)

.PHONY: test-vllm
test-vllm: $(VENV)/.installed | $(PROMETHEUS)
	$(PYTEST) tests/engine -m engine $(PYTEST_ARGS)

.PHONY: test-cluster
test-cluster: $(VENV)/.installed | $(PROMETHEUS) ## Run the operator, its chart and the commands on a real control plane (needs Go; builds it once, ten minutes)
	$(PYTEST) -m cluster $(PARALLEL_CLUSTER) $(PYTEST_ARGS)

# A seed finds the same on every machine. The fixed one guards what was found before; the other, which is printed, looks further.
SEED ?=
FUZZ_SEEDS = $(or $(SEED),1 $(shell $(BIN)/python -c 'import secrets; print(secrets.randbelow(2**32))'))
FUZZED ?= $(CACHE)/fuzzed

.PHONY: fuzz
fuzz: $(VENV)/.installed ## Attack validate, agents, ledger, report and operator (two minutes; SEED= repeats it, FUZZ_SCALE=10 tries ten times as much)
	@mkdir -p $(dir $(FUZZED)) && rm -f $(FUZZED)
	@for seed in $(FUZZ_SEEDS); do \
		echo "fuzz: seed $$seed"; \
		SPINRUN_FUZZED=$(FUZZED) $(BIN)/pytest tests/fuzz -q $(PARALLEL) --hypothesis-seed=$$seed $(PYTEST_ARGS) || \
			{ echo "fuzz: seed $$seed has found something: make fuzz SEED=$$seed finds it again"; exit 1; }; \
	done

.PHONY: control-plane
control-plane: ## Start a Kubernetes control plane without nodes (needs Go; builds it once, ten minutes)
	tools/control-plane up --state $(CACHE)/control-plane

.PHONY: control-plane-down
control-plane-down: ## Stop it; `make control-plane` resumes the same cluster
	tools/control-plane down --state $(CACHE)/control-plane

.PHONY: cluster-up
cluster-up: ## Start a Kubernetes cluster with a real node (needs root and Go; builds it once, fifteen minutes)
	tools/cluster up --state $(CACHE)/cluster

.PHONY: cluster-down
cluster-down: ## Stop it; `make cluster-up` resumes with the same objects and images
	tools/cluster down --state $(CACHE)/cluster

.PHONY: images
images: ## Build the images of operator and worker (needs Docker, or root)
	tools/images build

.PHONY: examples-smoke
examples-smoke: $(VENV)/.installed ## Train each recipe of examples/ for two windows, in a small form
	$(PYTEST) tests/smoke $(PYTEST_ARGS)

.PHONY: e2e
e2e: $(VENV)/.installed $(MODEL)/config.json | $(PROMETHEUS) ## Run real pods through what befalls pods (root and Go; or KUBECONFIG and IMAGES; or Docker and CLUSTER=kind)
	SPINRUN_LEFT_OUT=$(LEFT_OUT)/$@ $(if $(filter kind,$(CLUSTER)),tools/kind) $(BIN)/pytest $(E2E) -m e2e $(PYTEST_ARGS)

.PHONY: test-node
test-node: $(VENV)/.installed ## Test the cluster of `make cluster-up` itself (root and Go)
	$(PYTEST) tests/integration/node -m e2e $(PYTEST_ARGS)

.PHONY: generate
generate: $(VENV)/.installed ## Write what is made from code and values: CRD, API reference, chart, dashboards, alerts
	$(BIN)/python -m spinrun_api.crd > crds/spinrun.dev_spinruns.yaml
	$(BIN)/python -m spinrun_api.reference > docs/api.md
	$(BIN)/python charts/generate.py

.PHONY: prometheus
prometheus: $(BIN)/prometheus ## Get Prometheus and promtool, which test dashboards and alerts (Debian; elsewhere install them yourself)

# Without it the tests that need it are skipped, and say so: nothing fails here. apt-get knows no package before its first update.
$(BIN)/prometheus: | $(VENV)/.installed
	@command -v apt-get >/dev/null || { echo "no apt-get, and so no Prometheus: dashboards and alerts are not tested"; exit 0; }; \
	mkdir -p $(CACHE)/prometheus && cd $(CACHE)/prometheus && rm -f *.deb && \
	{ apt-get download -qq prometheus 2>/dev/null || { apt-get update -qq && apt-get download -qq prometheus; }; } && \
	dpkg-deb --fsys-tarfile prometheus_*.deb | tar --extract --strip-components=3 ./usr/bin/prometheus ./usr/bin/promtool && \
	install -m 755 prometheus promtool $(abspath $(BIN)) || echo "Prometheus cannot be downloaded: dashboards and alerts are not tested"

.PHONY: bench
bench: $(VENV)/.installed $(MODEL)/config.json ## Measure the engine beside TRL, vLLM and the bare disk (BENCH_ARGS="--repeats 1" for a look; ten minutes a repeat)
	$(BIN)/python tests/bench/bench_engine.py --model $(abspath $(MODEL)) $(BENCH_ARGS)

.PHONY: bench-time
bench-time: $(VENV)/.installed $(MODEL)/config.json ## Measure seconds to a held-out accuracy of 0.85, SpinRun beside TRL (hours; BENCH_ARGS="--search grpo" or "--measure spinrun --seed 0" for a part)
	$(BIN)/python tests/bench/time_to_accuracy.py --model $(abspath $(MODEL)) $(BENCH_ARGS)

.PHONY: bench-gpu
bench-gpu: $(VENV)/.installed ## Measure train step and windows on a GPU, with random weights in the shapes of Qwen2.5
	$(BIN)/python tests/bench/bench_gpu.py $(BENCH_ARGS)

.PHONY: bench-estimate
bench-estimate: $(VENV)/.installed $(MODEL)/config.json ## Hold spinrun estimate against three short runs on this machine (ten minutes)
	$(BIN)/python tests/bench/bench_estimate.py --model $(abspath $(MODEL)) $(BENCH_ARGS)

.PHONY: curves
curves: $(VENV)/.installed $(MODEL)/config.json ## Make the runs and pictures of docs/reading-the-curves.md (half an hour on two cores)
	$(BIN)/python tools/curves.py --model $(abspath $(MODEL))

.PHONY: bench-learning
bench-learning: $(VENV)/.installed $(MODEL)/config.json ## Train what is missing of every method, two tasks and three seeds, and fail where one does not learn (hours; BENCH_ARGS="--task letters --seed 0 grpo" for a part)
	$(BIN)/python tests/bench/bench_learning.py --model $(abspath $(MODEL)) $(BENCH_ARGS)

.PHONY: bench-operator
bench-operator: $(VENV)/.installed ## Measure the operator with 300 runs at once (needs Go; builds kwok once)
	$(BIN)/python tests/bench/bench_operator.py $(BENCH_ARGS)

.PHONY: lint
lint: $(VENV)/.installed ## Check style, types, layers and dependencies
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/deptry crds operator worker cli

.PHONY: format
format: $(VENV)/.installed ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: constraints
constraints: $(VENV)/.installed ## Write constraints.txt from what is installed, and hashes.txt, which the images are checked against
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --group image
	(echo '# Versions that were tested together; names and versions only. Made by `make constraints`.'; $(BIN)/uv pip freeze --python $(BIN)/python --exclude-editable --exclude pip) > constraints.txt
	$(MAKE) hashes.txt

hashes.txt: constraints.txt overrides.txt pyproject.toml | $(VENV)/.installed
	$(BIN)/uv pip compile --quiet --no-header --no-annotate --generate-hashes --python-version 3.11 --python-platform x86_64-unknown-linux-gnu \
	  $(foreach extra,operator worker cpu wandb tensorboard mlflow otel,--extra $(extra)) --group image \
	  --constraint constraints.txt --override overrides.txt --output-file $@ pyproject.toml

.PHONY: clean
clean: ## Delete the environment, caches and runs
	rm -rf $(VENV) $(CACHE) runs .pytest_cache .ruff_cache .hypothesis .import_linter_cache
