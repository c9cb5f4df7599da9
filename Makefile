# Needs only Python 3.11, 3.12 or 3.13 with pip. Everything goes into .venv; nothing else on the machine is touched.
# The newest that works is taken: a shim may stand for a Python that is not there, and Debian's may lack ensurepip.
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
	"$$python" -c 'import ensurepip, venv' 2>/dev/null && command -v "$$python" && break; done)
BIN := .venv/bin
UV := UV_PROJECT_ENVIRONMENT=.venv VIRTUAL_ENV= $(BIN)/uv
export TF_CPP_MIN_LOG_LEVEL := 2
# Where this is set, every process compiles all it imports anew: 10 seconds in place of 3.
export PYTHONDONTWRITEBYTECODE :=

# On a CPU, arrays keep their memory pages from one step to the next (launch/malloc.py).
demo assets: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=100000000000:glibc.malloc.top_pad=67108864

.PHONY: setup dev demo check test durations lint types bench docs assets format fuzz soak audit

setup: .venv/.setup
.venv/.setup: pyproject.toml uv.lock
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.9"
	@$(UV) sync --quiet --locked --inexact
	@touch $@

# PyTorch and its packages are peers for tests and benchmarks: installed by pip beside the locked set.
dev: .venv/.dev
.venv/.dev: .venv/.setup requirements-parity.txt
	@$(UV) sync --quiet --locked --inexact --extra dev
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-parity.txt
	@touch $@

demo: setup
	@$(BIN)/retsta demo --run-dir runs/demo
	@$(BIN)/unicross demo --run-dir runs/unicross-demo
	@$(BIN)/deer demo --run-dir runs/deer-demo

lint: dev
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports --no-cache

types: dev
	@$(BIN)/mypy

test: lint types
	@$(BIN)/pytest -n 2 --max-worker-restart=0 --dist loadfile --no-loadscope-reorder

# The half of the tests that takes least time.
check: lint types
	@$(BIN)/pytest -n 2 --max-worker-restart=0 --dist loadfile --no-loadscope-reorder --fast

# Measures how long each file takes, by which `check` and `test` choose and order them.
durations: dev
	@$(BIN)/pytest -n 2 --max-worker-restart=0 --dist loadfile --no-loadscope-reorder --measure

bench: dev
	@$(BIN)/medreport bench sft --peer
	@$(BIN)/medreport bench decode --peer
	@$(BIN)/medreport bench unicross --peer
	@$(BIN)/medreport bench rl --peer

# The site stands in site/ and opens without a server: site/index.html.
docs: setup
	@$(UV) sync --quiet --locked --inexact --extra docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

assets: setup
	@$(BIN)/python -m retsta_jax.make_assets
	@$(BIN)/python -m retsta_jax.make_adapter
	@$(BIN)/python -m unicross_jax.pretrain
	@$(BIN)/python -m unicross_jax.make_assets
	@$(BIN)/python -m deer_jax.make_assets

format: dev
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

# A minute for each reader of files from outside; FUZZ_SECONDS=3600 for an hour.
fuzz: dev
	@$(BIN)/python -m tests.fuzz --seconds $(or $(FUZZ_SECONDS),60)

# Every command that continues is killed at 50 random moments and compared with an undisturbed one; hours on two cores.
# SOAK="--kills 3 deer-rl" for one of them, "--by stop" for SIGTERM.
soak: dev
	@$(BIN)/python -m tests.soak $(SOAK)

# Known vulnerabilities of all locked packages; asks the OSV database over the network.
audit: setup
	@$(UV) audit --locked --preview-features audit-command
