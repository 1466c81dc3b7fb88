# What a newcomer types. `make replicate` and `make test` set up everything they need.
PYTHON ?= python3
CORES ?= all
STUDY ?= laptop

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# What pip is told for a user's other projects: to install elsewhere than into the environment.
export PIP_USER := 0
unexport PIP_TARGET PIP_PREFIX PIP_ROOT PYTHONHOME

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

.PHONY: replicate figures publish test test-quick check bench bench-data bench-pipeline gpu-check ui audit lock \
	clean

replicate: $(READY)
	$(BIN)/snakemake --cores $(CORES)
	$(BIN)/snakemake --report results/laptop/snakemake-report.html > results/laptop/logs/snakemake-report.log 2>&1
	@$(BIN)/python -m mhclite evidence --results results/laptop --show
	@echo
	@echo "Next:"
	@echo "  open results/laptop/report.html    the whole study on one page"
	@echo "  make ui                            the MLflow UI: every run, curve and artifact"

# Every figure, table and verdict of a published study again, without training.
figures: $(READY)
	$(BIN)/python -m mhclite publish rebuild --published results/published/$(STUDY) --out results/$(STUDY)-rebuilt
	@echo "open results/$(STUDY)-rebuilt/report.html"

# After a study: keep its small files in the repository, and write README and docs from them.
publish: $(READY)
	$(BIN)/python -m mhclite publish make --results results/$(STUDY) --out results/published/$(STUDY)
	$(BIN)/python -m mhclite publish pages

# Format, lint, types, then every test, three files at a time on two cores: those of SLURM and of
# servers wait much. A pipeline run from end to end is among them.
test: check
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder

# While working: format, lint, types and the unit tests that are quick.
test-quick: check
	$(BIN)/pytest tests/unit -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/mypy

# What every variant costs in every implementation, against the plain residual. The longest part is
# compiling the reference: BENCH="--arms reference:eager fast:eager fast:compiled" leaves that out,
# nine minutes on two cores.
bench: $(READY)
	$(BIN)/python -m mhclite.bench implementations --out results/bench/bench.json $(BENCH)

# What the pipeline costs around training: after `make replicate`, in the same checkout.
bench-pipeline: $(READY)
	$(BIN)/python -m mhclite.bench pipeline --out results/bench/pipeline.json

# On a machine with a GPU, where torch, Triton and numpy are enough: no environment is made. The first
# stages of a session; docs/gpu.md has the others.
gpu-check:
	PYTHONPATH=src $(PYTHON) -m mhclite gpu-session --minutes 9 --out results/gpu-session \
		--golden tests/golden/*.npz --stages limits compile parity shapes kernels

ui: $(READY)
	$(BIN)/python -m mhclite ui

# Preparation against the tokenizer alone, two processes against one, memory, waits (docs/data.md).
bench-data: $(READY)
	$(BIN)/python -m mhclite.bench data --out results/bench/data.json

# The environment: plain pip, every version pinned. Made again when the pins change.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $$($(PYTHON) --version) is too old: Python 3.11 or newer is needed; name one with PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' || \
		{ echo "error: this Python cannot make virtual environments; on Debian or Ubuntu: apt install python3-venv"; exit 1; }
	@echo "Installing the pinned packages of requirements.lock into $(VENV)/ (one to five minutes, once)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install -qq $$(grep '^uv==' requirements.lock)
	@# uv is several times faster; pip does the same where uv does not find the packages.
	@UV_FIND_LINKS="$(PIP_FIND_LINKS)" $(BIN)/uv pip install -q --python $(BIN)/python --no-deps -r requirements.lock || \
		$(BIN)/python -m pip install -q --no-deps -r requirements.lock
	@$(BIN)/python -m pip install -qq --no-deps --no-build-isolation --editable .
	@touch $@

# Known vulnerabilities of the pinned versions. Needs the network.
audit: $(READY)
	$(BIN)/uv tool run pip-audit==2.10.0 -r requirements.lock --no-deps --disable-pip

# Pin again what is installed in the environment, after a change of the versions in pyproject.toml.
lock:
	$(BIN)/python -m pip install -qq --editable '.[dev]'
	{ echo "# Every package of the environment, pinned. Made by \`make lock\`; see docs/reproducibility.md."; \
	  $(BIN)/python -m pip freeze --all --exclude-editable --exclude pip --exclude mhclite | sed 's/+cpu$$//'; } > requirements.lock

clean:
	rm -rf $(VENV)
