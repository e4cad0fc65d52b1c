# `make help` lists the targets. The first one that needs it creates the environment; it is made again when
# pyproject.toml or constraints.txt changes, and not otherwise.

PYTHON ?= python3
VENV ?= .venv

BIN := $(VENV)/bin
PIP_INSTALL := -m pip install -qq --disable-pip-version-check
STAMP := $(VENV)/.installed
BENCH_STAMP := $(VENV)/.installed-bench
DOCS_STAMP := $(VENV)/.installed-docs
FLOORS := build/floors

.PHONY: help install demo test test-cpus test-all check docs bench floors clean
.DELETE_ON_ERROR:

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1\t\2/' | expand -t 12

install: $(STAMP) ## create .venv with everything the other targets need

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (a minute or two) ..."
	@$(BIN)/python $(PIP_INSTALL) -c constraints.txt -e ".[faiss,gp,flow,train,plots,omics,arrow,zarr,dask,experiments,dev]"
	@touch $@

$(BENCH_STAMP): $(STAMP)
	@$(BIN)/python $(PIP_INSTALL) -c constraints.txt -e ".[bench]"
	@touch $@

$(DOCS_STAMP): $(STAMP)
	@$(BIN)/python $(PIP_INSTALL) -c constraints.txt -e ".[docs]"
	@touch $@

demo: $(STAMP) ## compare calibration variants on the emoji data: one table, and a report in outputs/
	@$(BIN)/python -m experiments.compare

check: $(STAMP) ## lint, formatting, types
	@$(BIN)/ruff check -q .
	@$(BIN)/ruff format -q --check .
	@$(BIN)/mypy

# One thread each, as the matrices of the tests are small, and a process for each of two cores: each takes one half of the
# tests in their order, so that pages and the fixtures of a file stay together; who is done first takes over from the other.
WORKERS ?= 2
test: check ## check, then every test but the slow ones, doctests and the documentation's code included
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --dist worksteal

# A processor is known by the order in which it adds: in matrix products (MKL; OpenBLAS is that of NumPy and SciPy), in
# loops over vectors (ATen) and over threads. "this" is the machine's own.
CPUS := this MKL_CBWR=COMPATIBLE MKL_CBWR=AVX2 ATEN_CPU_CAPABILITY=default OPENBLAS_CORETYPE=Haswell
# Nothing is computed in these: packaging, sources, pages in a browser, reports of what was computed, pictures.
NOT_NUMERIC := wheel repository browser reports analysis gather plots

test-cpus: $(STAMP) ## numeric tests and all pages as other processors compute them, with 1 and 2 threads (about an hour)
	@failed=; for cpu in $(CPUS); do for threads in 1 2; do \
		echo "== processor: $$cpu, threads: $$threads"; \
		env $${cpu#this} OMP_NUM_THREADS=$$threads $(BIN)/python -m pytest -m "not slow or page" \
			$(NOT_NUMERIC:%='--ignore-glob=*/test_%.py') $(CPU_TESTS) || failed="$$failed, $$cpu with $$threads"; \
	done; done; \
	test -z "$$failed" && found="all passed" || found="failed on$${failed#,}"; \
	echo "== $(words $(CPUS)) processors, 1 and 2 threads each: $$found"; \
	test -z "$$failed"

test-all: check test-cpus ## check, then every test, and the numeric ones as on other processors
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest

# The theme's notice about the next MkDocs is for who maintains sites, not for who reads them.
docs: $(DOCS_STAMP) ## the documentation site, with its notebooks executed, in build/site
	@NO_MKDOCS_2_WARNING=1 PYTHONPATH=. $(BIN)/python -m mkdocs build --strict --quiet
	@echo "build/site/index.html; to search in it: $(BIN)/python -m http.server -d build/site"

bench: $(BENCH_STAMP) ## speed and memory against bare matrix products and other packages
	@$(BIN)/python -m benchmarks

floors: ## the tests on the oldest versions that pyproject.toml allows (downloads about 6 GB)
	$(PYTHON) -m venv $(FLOORS)
	$(FLOORS)/bin/python $(PIP_INSTALL) -c floors.txt -e ".[faiss,gp,flow,train,plots,omics,arrow,zarr,dask,experiments,dev]"
	OMP_NUM_THREADS=1 $(FLOORS)/bin/python -m pytest -m "not slow"

clean: ## remove the environment, caches and built files; results in outputs/ stay
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
