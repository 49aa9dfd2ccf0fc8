# make run    sets everything up, runs the main job     (ARGS="--requests 50" passes options to `memnic run`)
# make test   sets everything up, runs the tests        (ARGS="-k segmenter" passes options to pytest)
# make formal proves what can be proved about the RTL, also what takes too long for `make test`
# make soak   sends 100,000 hostile frames, bad descriptors and random programs to RTL and model (ARGS="--seed 5")
# make mutation changes the RTL in hundreds of places, and counts how many changes the tests find (ARGS="--jobs 1")
# make coverage shows which lines and bits of the RTL the tests of the whole device reach

PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.PHONY: run test formal soak mutation coverage setup lint lock clean

run: $(STAMP)
	@$(BIN)/memnic run $(ARGS)

test: $(STAMP)
	@$(BIN)/python -m pytest $(ARGS)

formal: $(STAMP)
	@$(BIN)/python -m pytest -m "long or not long" --verbose --durations 0 --durations-min 1 tests/formal $(ARGS)

soak mutation coverage: $(STAMP)
	@$(BIN)/python -m tests.$@ $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

setup: $(STAMP)

$(STAMP): requirements.txt pyproject.toml
	@command -v $(PYTHON) > /dev/null || { echo "memnic setup: Python 3.11 is missing: install python3" >&2; exit 2; }
	@$(PYTHON) tools/check_tools.py
	@echo "setting up $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# After a change of pyproject.toml's dependencies; needs pip-tools.
lock:
	pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras --no-header --no-emit-index-url \
		--no-emit-trusted-host --no-emit-find-links --extra test --output-file requirements.txt pyproject.toml

clean:
	rm -rf $(VENV) build results *.egg-info
