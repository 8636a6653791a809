# Two commands matter: `make demo` and `make test`. Each does all its own set-up.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Half of the tests wait for something at any time.
JOBS   ?= $(shell echo $$(($$(nproc) + 1)))

.PHONY: demo test lint bench bench-tracing torture torture-nodes stack stack-secrets image-check clean

# The stamp is newer than pyproject.toml exactly when what it asks for is installed.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/aimx demo $(if $(ONCE),--once)

test: lint
	$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal -m "not torture and not stack and not image" $(ARGS)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: $(VENV)/.installed
	$(BIN)/python -m bench $(ARGS)
	$(BIN)/python -m bench.scale $(ARGS)

bench-tracing: $(VENV)/.installed
	$(BIN)/python -m bench.tracing $(ARGS)

# KILLS=500 CUTS=50 SEED=… : how long the crash runs go on, and with which dice. Some of it needs root, and says so.
torture: $(VENV)/.installed
	$(BIN)/python -m pytest -q -s -m torture tests/system $(ARGS)

# Two nodes of two workers in network namespaces over one PostgreSQL, mixed load with faults: MINUTES=30 SEED=…
torture-nodes: $(VENV)/.installed
	MINUTES=$(or $(MINUTES),30) $(BIN)/python -m pytest -q -s -m torture \
		tests/system/test_torture.py::test_two_nodes_of_two_workers_for_long $(ARGS)

# A collector from source (Go), its check of otel-collector.yaml, and the tests that run it.
build/otelcol/otelcol: dashboards/collector-build.yaml
	mkdir -p build
	go run go.opentelemetry.io/collector/cmd/builder@v0.158.0 --config $<

stack: $(VENV)/.installed build/otelcol/otelcol
	build/otelcol/otelcol validate --config otel-collector.yaml
	$(BIN)/python -m pytest -q -s -m stack tests/stack $(ARGS)

# Passwords for docker-compose.yml, once.
stack-secrets:
	deploy/stack-secrets

# The Dockerfile's steps without a container engine: a clean environment, another user, a read-only tree.
image-check: $(VENV)/.installed
	$(BIN)/python -m pytest -q -m image tests/stack/test_image.py $(ARGS)

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
