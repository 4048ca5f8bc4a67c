# The verbs of the project. `make demo` and `make test` do all the set-up themselves; a second run reuses .venv.
#   make demo    train on MovieLens-100k with every embedding weight in one bit, compare with fp32, measure a large table
#   make test    all tests; ARGS="-k name" picks some
#   make test-hosted    what is for a GPU, without one: CUDA devices of torch's in the host's memory, emulated kernels
#   make test-distributed    the tests of several processes; installs TorchRec and FBGEMM beside torch
#   make lint    ruff: rules and format          make types   mypy, strict, on core, backends and io
#   make bench   beside its peers, on this CPU; ARGS="--shapes 1e6x128x2048x20 --threads 1" takes a minute
#   make bench-report    all of it, written to docs/benchmarks/cpu.md       make docs    HTML in docs/_build/html
#   make bench-billion    a table of 1e9 x 32 trained, saved, mapped and served; 16 GB of memory, 21 GB of disk
#   make sanitize    native tests under AddressSanitizer and UndefinedBehaviorSanitizer (needs cmake and g++)
#   make sanitize-cuda    CUDA kernels, run on the CPU, under AddressSanitizer and ThreadSanitizer
#   make mutants     do the tests see a mistake in a CUDA kernel? 124 are planted, 7 minutes; ARGS="-k bag" picks some
#   make gpu     on a machine with a GPU, torch and CuPy: tests, compute-sanitizer, benchmark; installs nothing
#   make wheel   a wheel in dist/                make clean   remove what a build made; .venv and runs/ stay
PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
READY := .venv/.ready
PEERS := .venv/.peers
TORCHREC := .venv/.torchrec

.PHONY: demo test test-hosted test-distributed lint types bench bench-report bench-billion docs sanitize sanitize-cuda mutants gpu wheel clean
.DELETE_ON_ERROR:

demo: $(READY)
	$(BIN)/packedbag train movielens-100k --compare --no-memory --output runs/movielens-100k
	$(BIN)/packedbag compare --rows 1M --dim 128 --batch 512 --bag 20 --plot runs/movielens-100k/memory.png

test: $(READY)
	$(BIN)/python -m pytest -q -n 2 $(ARGS)

test-hosted: $(READY)
	HOSTED=1 PYTHON=$(BIN)/python GPU_PARTS="kernels modules" .ci/gpu

test-distributed: $(TORCHREC)
	$(BIN)/python -m pytest -q tests/distributed tests/adapters/torchrec $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy packedbag/core packedbag/backends packedbag/io

bench: $(PEERS)
	$(BIN)/python -m benchmarks $(ARGS)

bench-report: $(PEERS)
	$(BIN)/python -m benchmarks --json docs/benchmarks/cpu.json --page docs/benchmarks/cpu.md --figures docs/_static $(ARGS)

bench-billion: $(READY)
	$(BIN)/python benchmarks/billion.py --limit 18 --json docs/benchmarks/billion.json \
		--page docs/benchmarks/billion.md --figure docs/_static/billion.svg $(ARGS)

docs: $(READY)
	$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build/html

sanitize: $(READY)
	cpu/sanitize.sh -n 2

sanitize-cuda: $(READY)
	tests/cuda_on_cpu/sanitize.sh $(ARGS)

mutants: $(READY)
	$(BIN)/python -m tests.cuda_on_cpu.mutants $(ARGS)

gpu:
	PYTHON=$(PYTHON) .ci/gpu $(ARGS)

wheel: $(READY)
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf build dist docs/_build .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find packedbag tests benchmarks docs examples -name __pycache__ -type d -prune -exec rm -rf {} +

# FBGEMM fits one torch each: 1.8.0 is of torch 2.13.0. Where it cannot be installed, the benchmarks say so and go on.
$(PEERS): $(READY)
	-$(BIN)/python -m pip install --quiet --no-deps fbgemm-gpu-cpu==1.8.0 && touch $@

# TorchRec needs that FBGEMM, too. Without --no-deps pip would bring a torch with CUDA.
$(TORCHREC): $(READY) requirements/torchrec.txt
	$(BIN)/python -m pip install --quiet --no-deps -r requirements/torchrec.txt && touch $@

# The compiled sources are listed, so that a change in one builds the native backend again.
$(READY): pyproject.toml constraints.txt .ci/venv $(shell find cpu -type f)
	.ci/venv $(PYTHON)
	@touch $@
