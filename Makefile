PYTHON ?= .venv/bin/python
LOCKED = slurm studio onnx docs dev

.PHONY: setup format check test faults bench gpu docs lock

setup:   ## .venv from the lock file
	python3 bootstrap.py setup

format:  ## rewrite the source in the house style
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

check:   ## what CI checks besides the tests
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

test:    ## all tests that this machine supports
	python3 bootstrap.py test

faults:  ## kills, full disks, several processes, memory, leftovers: the long forms (docs/reliability.md)
	$(PYTHON) -m tests.faults

bench:   ## all benchmarks, one after another (about a quarter of an hour on two cores), and one table
	$(PYTHON) -m benchmarks

gpu:     ## on a machine with CUDA: tests there, every task beside the CPU, training, speed; one table, gpu.md
	$(PYTHON) -m benchmarks.gpu --device cuda --out gpu.md

docs:    ## the documentation site, in build/site; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict

# Without the extras wandb, mlflow and benchmarks: large, needed by few, and mlflow holds other packages back.
lock:    ## pin the newest packages that pyproject.toml allows
	uv pip compile --quiet --universal --generate-hashes --python-version 3.11 $(addprefix --extra ,$(LOCKED)) pyproject.toml -o requirements.lock
