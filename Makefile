# Two commands do everything on a bare machine with Python (3.11 or newer) and make:
#   make quickstart   install, run the whole method on embedded data, print the paper's finding
#   make test         install with the dev extra and FFCV, lint, type-check, run the tests
#   make ffcv         FFCV for ImageNet, and the system packages that it is built with
#   make docs         install with the docs extra, build the documentation into site/
#   make cluster-files  the wheel and the token that `ray up cluster.yaml` ships
#   make dist         wheel and sdist, checked
#   make notebooks    run the notebooks on the quickstart, and keep their outputs in them
#   make test-faults  kill processes and harm files while sweeps run
#   make test-cluster  ray up over SSH to two machines made of namespaces, a sweep on them, ray down; a Slurm on such (root)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SWEEP_ARGS ?=

.PHONY: quickstart test test-faults test-cluster lint docs ffcv ffcv-if-possible cluster-files dist notebooks bench clean
.DELETE_ON_ERROR:

quickstart: $(VENV)/.installed
	$(BIN)/python -m raylth.sweep sweeps/quickstart.yaml $(SWEEP_ARGS)

test: $(VENV)/.installed-dev
	$(MAKE) --no-print-directory -j 2 lint ffcv-if-possible
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --ignore tests/faults --ignore tests/clouds/test_local.py --ignore tests/clouds/test_slurm.py

test-faults: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 tests/faults

test-cluster: $(VENV)/.installed-dev
	sh scripts/packages.sh cluster
	$(BIN)/python -m pytest tests/clouds/test_local.py tests/clouds/test_slurm.py

ffcv: $(VENV)/.installed-ffcv

ffcv-if-possible:
	-@$(MAKE) --no-print-directory ffcv || echo "FFCV is not to be had: its tests are skipped" >&2

cluster-files: $(VENV)/.installed
	sh scripts/install.sh $(VENV) clouds
	rm -rf dist && $(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps -w dist .
	umask 077 && $(BIN)/ray get-auth-token --generate >/dev/null

dist: $(VENV)/.installed-dev
	rm -rf dist
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/uv build --quiet --out-dir dist
	$(BIN)/python -m twine check --strict dist/*.whl dist/*.tar.gz

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

notebooks: quickstart $(VENV)/.installed-dev
	$(BIN)/python scripts/run_notebooks.py

bench: $(VENV)/.installed-dev
	sh scripts/install.sh $(VENV) bench
	$(BIN)/python benchmarks/train_cpu.py
	$(BIN)/python benchmarks/quickstart_time.py
	$(BIN)/python benchmarks/matching.py
	$(BIN)/python benchmarks/orchestration.py
	$(BIN)/python benchmarks/analyses.py

clean:
	rm -rf $(VENV) site .import_linter_cache .pytest_cache .mypy_cache .ruff_cache

# The stamps make a second install do no work; they fall behind when the package's needs change.
$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=python3.x" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "the venv module is missing: apt-get install python3-venv" >&2; exit 2; }

$(VENV)/.installed: pyproject.toml constraints.txt scripts/install.sh | $(VENV)/bin/pip
	sh scripts/install.sh $(VENV)
	touch $@

$(VENV)/.installed-ffcv: scripts/packages.sh $(VENV)/.installed
	sh scripts/packages.sh ffcv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[imagenet]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	sh scripts/install.sh $(VENV) dev
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	sh scripts/install.sh $(VENV) docs
	touch $@
