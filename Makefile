# make demo | test | bench | clean          (needs: python3 >= 3.11, python3-venv, make)
# make install | uninstall  [DESTDIR=] [WHEELS=DIR]

PYTHON ?= python3
VENV   := .venv
STAMP  := $(VENV)/.stamp
RUN    := $(VENV)/bin/python

.PHONY: demo test bench clean
.DEFAULT_GOAL := test

# A virtual environment that another interpreter made, or one that has since gone, is made anew.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "make: $(PYTHON) must be Python 3.11 or later" >&2; exit 1; }
	@$(RUN) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) \
		|| { echo "make: no virtual environment (apt-get install python3-venv)" >&2; exit 1; }
	@echo "setting up $(VENV) ..."
	@$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(STAMP)
	@$(RUN) -m tests.demo.receive_demo

test: $(STAMP)
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy
	$(RUN) -m pytest

bench: $(STAMP)
	@$(RUN) -m tests.bench.bench_receive

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find xendpy tests -name __pycache__ -type d -prune -exec rm -rf {} +
