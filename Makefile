# Two commands need nothing but Python 3.11: `make train` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
CONSTRAINTS ?= .ci/constraints.txt
WORKERS ?= auto
CUDA ?= cuda13

.PHONY: train test gpu lint clean

$(BIN)/.installed: pyproject.toml setup.py $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e ".[test,lint]"
	touch $@

train: $(BIN)/.installed
	$(BIN)/python demos/train_cifar.py --dataset shapes --depth 20 --iterations 350 --eval-every 175 \
	    --out runs/first --resume

test: $(BIN)/.installed
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) tests tinyres

# On an NVIDIA GPU; CUDA=cuda12 for drivers older than 580. Goes on where it was stopped.
gpu: $(BIN)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e ".[$(CUDA)]"
	$(BIN)/python -m tinyres_gpu.check

lint: $(BIN)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --platform win32
	$(BIN)/mypy --platform darwin

clean:
	rm -rf $(VENV) build dist *.egg-info
