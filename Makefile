# The newcomer's commands; `make help` lists them. Each target does all of its own set-up.
#
#   PYTHON=python3.12   the interpreter that .venv is made from (3.11 or newer)
#   MODEL=SRC           the model of the demo and of accuracy, instead of SmolLM2-135M-Instruct; of the
#                       bench, an artifact or a published shape such as llama-2-7b
#   ARGS="-k lut -x"    more arguments for pytest (test), the demo, the bench or accuracy
#   TARGET=PRESET       what to tune (default: this machine), with MODEL=SRC as its tasks; TRIALS=64 a
#                       task, MINUTES= in all; the log goes to tuning_logs/PRESET. What to prove
#                       (default: x86-avx512; or arm)
#   SHIFTADD_CACHE=DIR  where downloaded models and texts are kept (default: .cache)

PYTHON ?= python3
MODEL ?=
TARGET ?=
TRIALS ?=
MINUTES ?=
ARGS ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip
INSTALL := $(PIP) install --quiet --disable-pip-version-check --constraint constraints.txt --editable
# the packages of the extra `bench` that need no compiler
PEERS := matplotlib onnxruntime
# these compile operators by tests/kernels.py
OPERATOR_TESTS := $(patsubst %,tests/test_%.py,ops ops_hostile lut attention sample)
PACKAGING := pyproject.toml setup.py constraints.txt
RUNTIME := shiftadd_tvm/runtime
LIBRARY := $(RUNTIME)/lib/libshiftadd.so

.DEFAULT_GOAL := help
.PHONY: help install demo bench accuracy tune test models big-model prove lint wheel model clean
.DELETE_ON_ERROR:

help: ## list these targets
	@echo "make TARGET [PYTHON=python3.12] [MODEL=SRC] [ARGS=...]"
	@sed -n 's/^\([a-z]*\):.*## /\1|/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do \
		printf '  %-9s %s\n' "$$name" "$$text"; done

install: .venv/.installed $(LIBRARY) ## make .venv with the package: .venv/bin/shiftadd-tvm

demo: install model ## quantize, compile and run a real model, with a table of what it costs
	$(BIN)/python examples/demo.py $(if $(MODEL),--model "$(MODEL)") $(ARGS)

bench: .venv/.installed-bench $(LIBRARY) ## measure operators and a model against the memory's roof and their peers
	$(BIN)/python examples/bench.py $(if $(MODEL),--model "$(MODEL)") $(ARGS)

accuracy: .venv/.installed-bench $(LIBRARY) model ## compare perplexity over bits with other quantizers
	$(BIN)/python examples/accuracy.py $(if $(MODEL),--model "$(MODEL)") $(ARGS)

tune: .venv/.installed $(LIBRARY) ## search the fastest schedules of a target, into tuning_logs/
	@preset=$$($(BIN)/python -c 'import sys; from shiftadd_tvm import backend; name = sys.argv[1]; \
		known = backend.aliases(); \
		print(known[name].name if name in known else name or backend.detect().name)' \
		"$(TARGET)") || exit; \
	$(BIN)/shiftadd-tvm tune $(if $(MODEL),"$(MODEL)") --target "$$preset" -o "tuning_logs/$$preset" \
		$(if $(TRIALS),--trials "$(TRIALS)") $(if $(MINUTES),--minutes "$(MINUTES)") $(ARGS)

test: .venv/.installed-dev $(LIBRARY) ## run the tests
	$(BIN)/pytest $(ARGS)

models: .venv/.installed-dev $(LIBRARY) ## prove every model family against transformers, into docs/models.md
	$(BIN)/pytest tests/test_families.py tests/test_encoders.py --junitxml=build/families.xml $(ARGS)
	$(BIN)/python examples/models_table.py build/families.xml

big-model: .venv/.installed-dev $(LIBRARY) ## quantize and compile a LLaMA-2-7B of random weights, within 6 GB
	$(BIN)/python examples/big_model.py -o build/big-model $(ARGS)
	rm -rf build/big-model

# needs what .ci/run installs: bochs and bochs-term, or qemu-user
prove: .venv/.installed-dev ## run all tests of operators on TARGET in emulation: some minutes
	SHIFTADD_EMULATE="$(or $(TARGET),x86-avx512)" $(BIN)/pytest $(OPERATOR_TESTS) $(ARGS)

# mypy and import-linter need `shiftadd_tvm.schedules` where the wheel has it, so they check the
# tree that the wheel would hold.
lint: .venv/.installed-dev ## check style, types and the rooms
	$(BIN)/ruff check .
	@rm -rf build/lint
	@$(BIN)/python setup.py --quiet build --build-base build/lint-temp build_py --build-lib build/lint
	cd build/lint && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../mypy
	cd build/lint && ../../$(BIN)/lint-imports --config ../../pyproject.toml --cache-dir ../lint-imports

# not isolated: zig is here, and makes a library that runs on every Linux since 2018
wheel: .venv/.installed-dev ## build dist/*.whl, for this machine's architecture
	$(PIP) wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

model: .venv/.installed ## fetch the demo model and the evaluation texts into the cache
	$(BIN)/python examples/fetch_data.py

clean: ## remove what make made, apart from .venv and the cache
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +

# A stamp file makes a repeated install instant. The install is editable: a change of the sources
# needs none, a change of the packaging does.
.venv/.installed: .venv/bin/pip $(PACKAGING)
	@echo "installing shiftadd-tvm into .venv (about 400 MB are downloaded the first time)"
	@$(INSTALL) '.[gguf,inspect]'
	@touch $@

.venv/.installed-dev: .venv/bin/pip $(PACKAGING)
	@echo "installing shiftadd-tvm and its test tools into .venv (about 400 MB the first time)"
	@$(INSTALL) '.[eval,gguf,inspect,dev]'
	@touch .venv/.installed $@

# llama-cpp-python is built from source; where that fails, the bench names what is missing and goes on.
.venv/.installed-bench: .venv/.installed
	@echo "installing the peers of the bench into .venv (llama.cpp is built: some minutes)"
	@$(INSTALL) '.[gguf,bench]' || \
		{ echo "make: llama-cpp-python was not built, see above why; going on without it" >&2; \
		$(PIP) install --quiet --disable-pip-version-check --constraint constraints.txt $(PEERS); }
	@touch $@

# The editable install builds the library too; after that, a change of its sources builds it anew.
$(LIBRARY): $(RUNTIME)/native_build.py $(shell find $(RUNTIME)/cpp -type f) | .venv/.installed
	@$(BIN)/python -m shiftadd_tvm.runtime.native_build

# pip is the last thing that venv writes: a half-made .venv has none, and is made anew.
.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "make: $(PYTHON) is not Python 3.11 or newer; give another one by PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -m venv --clear .venv
