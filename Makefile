# SPDX-License-Identifier: Apache-2.0
# `make demo` and `make test` set everything up on a fresh machine, which needs Python 3.10+ with venv
# and a C++ compiler.

PYTHON ?= python3
VENV ?= .venv
ifeq ($(origin CXX),default)
CXX := c++
endif
CROSS_CXX ?= aarch64-linux-gnu-g++
QEMU ?= qemu-aarch64
CLANG_FORMAT ?= clang-format-16
ARGS ?=

BIN := $(VENV)/bin
READY := $(VENV)/.ready
PEERS := $(VENV)/.peers
LIBRARY := seqkern/_C.abi3.so
NATIVE := $(shell find csrc constrint/csrc -name '*.cpp' -o -name '*.hpp' -o -name '*.h')
# The kernels and their test driver: plain C++ that knows no torch.
KERNELS := $(wildcard csrc/test/*.cpp csrc/cpu/*.cpp csrc/cpu/isa/*.cpp)
# The solver's search core and its driver, which know neither torch nor Python.
SOLVER := $(wildcard constrint/csrc/test/*.cpp constrint/csrc/*.hpp)
CORES := $(shell nproc 2>/dev/null || echo 2)

.PHONY: all demo test bench lint format sanitize test-neon build clean

all: build

demo: build
	$(BIN)/seqkern train $(ARGS)

# One process a core; the tests of two threads ask for them.
test: build
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto $(ARGS)

bench: build $(PEERS)
	$(BIN)/python -m bench $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@if command -v $(CLANG_FORMAT) >/dev/null; then \
	  echo "$(CLANG_FORMAT) --dry-run --Werror" && $(CLANG_FORMAT) --dry-run --Werror $(NATIVE); \
	else \
	  echo "note: $(CLANG_FORMAT) is not here (apt-get install clang-format-16); C++ was not checked"; \
	fi

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(CLANG_FORMAT) -i $(NATIVE)

build: $(LIBRARY)

$(READY): tests/requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Python 3.10 or newer is needed, and $(PYTHON) is older: make PYTHON=python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "$(PYTHON) cannot make a virtual environment (apt-get install python3-venv)"; exit 1; }
	$(BIN)/python -m pip install --disable-pip-version-check -q -r tests/requirements.txt
	@touch $@

$(LIBRARY): $(READY) setup.py pyproject.toml $(NATIVE)
	@command -v $(CXX) >/dev/null || \
	  { echo "a C++ compiler is needed, and $(CXX) is not there (apt-get install g++)"; exit 1; }
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-build-isolation --no-deps -e .
	@touch $@

$(PEERS): $(READY) bench/requirements.txt bench/install_peers.py
	$(BIN)/python bench/install_peers.py
	@touch $@

# Both compile file by file, as many at a time as the machine has cores.
sanitize:
	@command -v $(CXX) >/dev/null || \
	  { echo "a C++ compiler is needed, and $(CXX) is not there (apt-get install g++)"; exit 1; }
	@$(MAKE) --no-print-directory -j$(CORES) build/sanitize/driver build/sanitize/solver
	ASAN_OPTIONS=detect_leaks=1 UBSAN_OPTIONS=print_stacktrace=1 build/sanitize/driver $(ARGS)
	ASAN_OPTIONS=detect_leaks=1 UBSAN_OPTIONS=print_stacktrace=1 build/sanitize/solver

test-neon: ARGS := $(or $(ARGS),quick)
test-neon:
	@command -v $(CROSS_CXX) >/dev/null || \
	  { echo "$(CROSS_CXX) is not there (apt-get install g++-aarch64-linux-gnu)"; exit 1; }
	@command -v $(QEMU) >/dev/null || \
	  { echo "$(QEMU) is not there (apt-get install qemu-user)"; exit 1; }
	@$(MAKE) --no-print-directory -j$(CORES) build/neon/driver
	$(QEMU) build/neon/driver $(ARGS)

build/sanitize/driver: $(KERNELS:csrc/%.cpp=build/sanitize/%.o)
	$(CXX) -fsanitize=address,undefined $^ -o $@

build/sanitize/%.o: csrc/%.cpp $(NATIVE)
	@mkdir -p $(@D)
	$(CXX) -std=c++20 -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined \
	  -fno-sanitize-recover=all -Wno-psabi -Wno-ignored-attributes -c $< -o $@

build/sanitize/solver: $(SOLVER)
	@mkdir -p $(@D)
	$(CXX) -std=c++20 -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined \
	  -fno-sanitize-recover=all $(filter %.cpp,$^) -o $@

build/neon/driver: $(KERNELS:csrc/%.cpp=build/neon/%.o)
	$(CROSS_CXX) -static $^ -o $@

build/neon/%.o: csrc/%.cpp $(NATIVE)
	@mkdir -p $(@D)
	$(CROSS_CXX) -std=c++20 -O2 -Wno-psabi -Wno-ignored-attributes -c $< -o $@

clean:
	rm -rf build dist seqkern.egg-info $(LIBRARY) constrint/_core*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
