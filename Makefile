# What a newcomer types. `make replicate` and `make test` set up everything they need.
PYTHON ?= python3
CORES ?= all
STUDY ?= laptop

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# What pip and uv are told for a user's other projects: to install elsewhere than into the environment,
# or other versions.
export PIP_USER := 0
unexport PIP_TARGET PIP_PREFIX PIP_ROOT PYTHONHOME PIP_CONSTRAINT PIP_REQUIRE_HASHES PIP_NO_DEPS
unexport UV_CONSTRAINT UV_OVERRIDE UV_REQUIRE_HASHES UV_EXCLUDE_NEWER UV_RESOLUTION UV_PRERELEASE

# Where Linux shows no GPU, the CPU build of torch is tried first: the same version, 3 GB less.
# UV_TORCH_BACKEND or a folder of one's own wheels, if set, decide instead.
ifeq ($(shell uname -s)$(UV_TORCH_BACKEND)$(PIP_FIND_LINKS)$(wildcard /dev/nvidia0 /dev/dxg /dev/kfd),Linux)
CPU_BUILD := yes
endif
INSTALL = UV_FIND_LINKS="$(PIP_FIND_LINKS)" $(BIN)/uv pip install -q --python $(BIN)/python \
	--no-build-isolation --constraint requirements.lock --editable '.[dev]'

# Python keeps what it compiled, whatever is set for other projects: every job is a process, and one
# that must compile its imports spends two to three times as long on them.
unexport PYTHONDONTWRITEBYTECODE

# Where the home folder cannot be written to, caches go beside the environment.
ifneq ($(shell mkdir -p "$${XDG_CACHE_HOME:-$$HOME/.cache}" 2>/dev/null && \
	test -w "$${XDG_CACHE_HOME:-$$HOME/.cache}" && echo writable),writable)
export XDG_CACHE_HOME := $(CURDIR)/.cache
endif

# Programs of an environment hold its path: one that was moved or copied is made anew.
ifeq ($(shell test -e $(READY) && { head -n 3 $(BIN)/snakemake | \
	grep -qF "$$(cd $(BIN) && pwd -P)/" || echo moved; }),moved)
.PHONY: $(READY)
endif

.PHONY: replicate rates tuned figures publish test test-all test-quick pytest check lint types bench bench-data bench-pipeline gpu-check ui site audit lock \
	clean

replicate: $(READY)
	$(BIN)/snakemake --cores $(CORES)
	$(BIN)/snakemake --report results/laptop/snakemake-report.html > results/laptop/logs/snakemake-report.log 2>&1

# The learning rate of every arm of a study (STUDY=laptop or tuned), found by its sweep and published.
# Published once more only where the rates are others: a newer file alone asks for nothing.
RATES = $(STUDY)_rates/learning-rates.yaml
rates: $(READY)
	$(BIN)/snakemake --cores $(CORES) --configfile config/$(STUDY)-rates.yaml
	mkdir -p results/published/$(STUDY)_rates
	cmp -s results/$(RATES) results/published/$(RATES) || cp results/$(RATES) results/published/$(RATES)

# The tuned study: the rates, then the study that takes them.
tuned: $(READY)
	$(MAKE) rates STUDY=tuned
	$(BIN)/snakemake --cores $(CORES) --configfile config/tuned.yaml

# Every figure, table and verdict of a published study again, without training.
figures: $(READY)
	$(BIN)/python -m mhclite publish rebuild --published results/published/$(STUDY) --out results/$(STUDY)-rebuilt
	@echo "open results/$(STUDY)-rebuilt/report.html"

# After a study: keep its small files in the repository, and write README and docs from them.
publish: $(READY)
	$(BIN)/python -m mhclite publish make --results results/$(STUDY) --out results/published/$(STUDY)
	$(BIN)/python -m mhclite publish pages

# Format and lint, then types beside the tests, three files at a time on two cores: those of SLURM
# and of servers wait much. A pipeline run from end to end is among them.
test: lint
	$(MAKE) -j 2 types pytest TESTS='-n 3 -m "not exhaustive"'

# Before a release: also what says little that others do not, for its minute, and more random cases.
test-all: lint
	EXHAUSTIVE=1 $(MAKE) -j 2 types pytest TESTS='-n 3'

# While working: format, lint, types and the unit tests that are quick.
test-quick: lint
	$(MAKE) -j 2 types pytest TESTS='-n 2 tests/unit -m "not slow"'

pytest: $(READY)
	$(BIN)/pytest --dist loadfile --no-loadscope-reorder $(TESTS)

check: lint types

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/snakefmt --check Snakefile workflow

types: $(READY)
	$(BIN)/mypy

# What every variant costs in every implementation, against the plain residual. The longest part is
# compiling the reference: BENCH="--arms reference:eager fast:eager fast:compiled" leaves that out,
# nine minutes on two cores.
bench: $(READY)
	$(BIN)/python -m benchmarks step --out results/bench/bench.json $(BENCH)

# What the pipeline costs around training: after `make replicate`, in the same checkout.
bench-pipeline: $(READY)
	$(BIN)/python -m benchmarks pipeline --out results/bench/pipeline.json

# On a machine with a GPU, where torch, Triton and numpy are enough: no environment is made. The first
# stages of a session; docs/gpu.md has the others.
gpu-check:
	$(PYTHON) -m benchmarks session --minutes 9 --out results/gpu-session --stages limits parity kernels

ui: $(READY)
	$(BIN)/python -m mhclite ui$(if $(PORT), --port '$(PORT)')

# docs/, README.md and the reports of all published studies as one static folder: site/index.html.
site: $(READY)
	for study in $$(ls -d results/published/*/study.parquet | cut -d / -f 3); do \
		$(BIN)/python -m mhclite publish rebuild --published results/published/$$study --out results/$$study-rebuilt || exit 1; done
	NO_MKDOCS_2_WARNING=true $(BIN)/mkdocs build
	@echo "open site/index.html"

# Preparation against the tokenizer alone, two processes against one, memory (docs/data.md).
bench-data: $(READY)
	$(BIN)/python -m benchmarks data --out results/bench/data.json

# The environment: what pyproject.toml names and what that needs here, every version pinned by
# requirements.lock. Which packages torch needs depends on its build, so they are resolved, not listed.
# Made again when the pins change; ready once what the jobs import can be imported.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' || \
		{ echo "error: $$($(PYTHON) --version) does not do: Python 3.11 to 3.14 is needed; name one with PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import platform as p, sys; sys.exit((p.system(), p.machine()) not in (("Linux", "x86_64"), ("Linux", "aarch64"), ("Darwin", "arm64")) or (p.system(), p.libc_ver()[0]) == ("Linux", ""))' || \
		{ echo "error: there is no torch $$(sed -n 's/^torch==//p' requirements.lock) for $$(uname -sm): Linux with glibc on x86_64 or aarch64 is needed (or macOS 14 on Apple silicon, untested)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' || \
		{ echo "error: this Python cannot make virtual environments; on Debian or Ubuntu: apt install python3-venv"; exit 1; }
	@echo "Installing the pinned packages of requirements.lock into $(VENV)/ (one to five minutes, once)"
	@$(PYTHON) -m venv --clear $(VENV)
	@# Built with the pinned setuptools, not with the newest.
	@$(BIN)/python -m pip install -qq $$(grep -E '^(uv|setuptools)==' requirements.lock)
	@# uv is several times faster; pip does the same where uv does not find the packages.
	@$(if $(CPU_BUILD),UV_TORCH_BACKEND=cpu $(INSTALL) 2> /dev/null || \
		{ echo "No CPU build of torch can be had from where it is published; taking what the package index has (up to 3 GB)"; false; } ||) \
		$(INSTALL) || \
		$(BIN)/python -m pip install -q --no-build-isolation --constraint requirements.lock --editable '.[dev]'
	@$(BIN)/python -c 'import torch, snakemake, mlflow, datasets, seaborn' || \
		{ echo "error: the environment was installed but cannot be imported (above); nothing was changed outside $(VENV)/"; exit 1; }
	@touch $@

# Known vulnerabilities of the pinned versions. Needs the network.
audit: $(READY)
	$(BIN)/uv tool run pip-audit==2.10.0 -r requirements.lock --no-deps --disable-pip

# Pin again, for every platform and Python, after a change of the versions in pyproject.toml. Pins
# that need not change stay. Of the public index alone: a local build of torch needs fewer packages.
lock:
	env -u UV_FIND_LINKS -u PIP_FIND_LINKS $(BIN)/uv pip compile -q --universal --fork-strategy fewest \
		--python-version 3.11 --extra dev --no-annotate --custom-compile-command 'make lock' pyproject.toml --output-file requirements.lock

clean:
	rm -rf $(VENV)
