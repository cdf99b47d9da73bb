# Two commands on a fresh machine: `make demo`, `make test`. Every target makes .venv when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
GPU_VENV := .venv-gpu
GPU_STAMP := $(GPU_VENV)/.ready
INPUT ?=
OUTPUT ?= demo-output
export SPARK_LOCAL_IP ?= 127.0.0.1

.PHONY: env demo test test-rapids test-gpu-contract check bench clean

env: $(STAMP)

$(STAMP): requirements/dev.lock pyproject.toml jars/jars.json
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "spark_dedup needs Python 3.11 or newer: run make PYTHON=/path/to/python3.11"; exit 2; }
	@echo "making $(VENV) (once; about three minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@$(BIN)/python -m spark_dedup.runtime delta
	@$(BIN)/python -m spark_dedup.class_archive
	@touch $(STAMP)

$(GPU_STAMP): requirements/gpu.lock
	@echo "making $(GPU_VENV) (once; about 6 GB)"
	@$(PYTHON) -m venv $(GPU_VENV)
	@$(GPU_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/gpu.lock
	@touch $(GPU_STAMP)

demo: $(STAMP)
	@$(BIN)/python -m spark_dedup.demo $(if $(INPUT),--input "$(INPUT)") --output "$(OUTPUT)"

test: $(STAMP)
	$(BIN)/python -m pytest -m "not rapids and not gpu_contract" -n 3 --dist loadfile

test-rapids: $(STAMP)
	$(BIN)/python -m spark_dedup.runtime rapids
	$(BIN)/python -m pytest -m rapids tests/rapids

test-gpu-contract: $(GPU_STAMP)
	PYTHONPATH=. $(GPU_VENV)/bin/python -m pytest --noconftest -p no:cacheprovider -m gpu_contract tests/gpu_contract

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m benchmarks.exact

clean:
	rm -rf $(VENV) $(GPU_VENV) demo-output build dist .pytest_cache .mypy_cache .ruff_cache
