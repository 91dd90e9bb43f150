# make demo    a server patched while it runs, in under two minutes
# make test    everything that is checked at each commit
# make test-rest  the same tests in the toolchains that make test leaves out, and longer ones
# make matrix  every kind of change in every kind of build, live: writes docs/support-matrix.md (twenty minutes);
#              ONLY=pie-data runs and writes a part, ONLY=situation that of processes and their surroundings
# make fuzz    generated programs with generated edits, patched while they run: MINUTES=5, SEED=N to begin with
# make torture katana killed, or its target, at every system call it makes, and a million signals (an hour and a half)
# make soak    a process under load is patched and unpatched ten times a second, for ten minutes: KATANA_SOAK=seconds
# make builds  real programs, built with Katana and without: writes docs/builds.md (an hour)
# make bench   the figures of docs/, measured here
# make .venv   all commands, in .venv/bin
# make deps    what the tests and benches need from the system (the demo needs gcc, make and python3-venv only)

PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
BIN := $(VENV)/bin

# What an installation copies: a change in any of it means installing again.
COPIED := pyproject.toml $(wildcard wrappers/katana-* wrappers/libexec/katana/* wrappers/libexec/katana/include/* cmake/* man/*) \
	katana_cc/recorder/stage.py $(wildcard katana_cc/recorder/staging/*.py)
SHELL_SCRIPTS := wrappers/katana-cc wrappers/katana-ld wrappers/libexec/katana/ld wrappers/libexec/katana/settings .ci/need .ci/run .ci/skips
OTHER_SHELL_SCRIPTS := $(shell for f in bench/run examples/*/run; do head -1 "$$f" 2>/dev/null | grep -q 'sh$$' && echo "$$f"; done)
MINUTES ?= 5
JOBS ?= $(shell nproc)

.PHONY: all .venv demo test test-rest lint matrix fuzz torture soak builds bench deps clean
all: .venv

.venv: $(STAMP)

$(STAMP): $(COPIED)
	@PYTHON='$(PYTHON)' .ci/need venv:python3-venv
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Katana needs Python 3.11 or later; name one with make PYTHON=...")'
	'$(PYTHON)' -m venv $(VENV)
	$(BIN)/python3 -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: .venv
	@.ci/need gcc:gcc headers:libc6-dev make:make
	examples/demo/run

deps:
	@PYTHON='$(PYTHON)' .ci/need gcc:gcc g++:g++ make:make headers:libc6-dev ld:binutils eu-elflint:elfutils gdb:gdb strace:strace \
		perf:linux-perf libunwind.h:libunwind-dev openssl:openssl chrpath:chrpath \
		shellcheck:shellcheck musl-gcc:musl-tools clang:clang ld.lld:lld ld.mold:mold cmake:cmake ninja:ninja-build venv:python3-venv \
		dpkg-source:dpkg-dev patch:patch ccache:ccache meson:meson \
		libtoolize:libtool autoreconf:autoconf automake:automake dwz:dwz patchelf:patchelf debugedit:debugedit man:man-db aarch64-linux-gnu-ld:binutils-aarch64-linux-gnu qemu-aarch64:qemu-user

lint: .venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	shellcheck -x $(SHELL_SCRIPTS) $(OTHER_SHELL_SCRIPTS)

# A test made for many toolchains runs in a sixth of them here (tests/conftest.py); the rest is for `make test-rest`.
RUN = $(BIN)/python3 -m pytest -n $(JOBS)
test: deps .venv lint
	$(RUN) --dist worksteal tests/unit tests/formats tests/toolchain
	$(RUN) --dist loadgroup tests/live tests/fuzz

test-rest: deps .venv
	KATANA_TESTS=rest $(RUN) --dist loadgroup tests/formats tests/toolchain tests/live

# What fails is in the page too: `make test` does not let it be committed.
matrix: deps .venv
	rm -f .matrix.log
	-KATANA_MATRIX=1 KATANA_MATRIX_LOG=.matrix.log $(BIN)/python3 -m pytest -n $(JOBS) --dist loadgroup $(if $(ONLY),-k '$(ONLY)') tests/live/test_matrix.py
	-KATANA_MATRIX_LOG=.matrix.log $(BIN)/python3 -m pytest -n $(JOBS) -m situation $(if $(ONLY),-k '$(ONLY)') tests/live
	$(BIN)/python3 -m tests.live.matrix.page $(if $(ONLY),--part) .matrix.log
	rm -f .matrix.log

# Counterexamples go to build/fuzz/; `python3 -m tests.fuzz replay FILE` checks one again.
fuzz: .venv
	$(BIN)/python3 -m tests.fuzz --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

# Whoever patches is struck at every single system call.
torture: .venv
	KATANA_TORTURE=1 KATANA_TESTS=all $(RUN) --dist worksteal tests/live/test_torture.py tests/live/test_torture_paths.py \
		tests/live/test_torture_moves.py tests/live/test_torture_calls.py tests/live/test_libunwind.py tests/live/test_stacking.py \
		tests/live/test_transparency.py

soak: .venv
	KATANA_SOAK=$${KATANA_SOAK:-600} $(BIN)/python3 -m pytest -s tests/live/test_soak.py

# `python3 -m tests.projects.builds zlib` builds one.
builds: deps .venv
	@.ci/need meson:meson libtoolize:libtool autoreconf:autoconf automake:automake dh:debhelper
	$(BIN)/python3 -m tests.projects.builds

bench: .venv
	bench/run

clean:
	rm -rf $(VENV) build dist bench/out .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
