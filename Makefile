# The command list: people and CI call the same targets.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
OUT    ?= demo-out
# Two at a time, the tests of a file one after the other: they share what it makes for them.
BESIDE := -n 2

.PHONY: demo test check slow test-browser repeat wheel bench docs clean

demo: $(VENV)/.demo  ## the whole story on bundled data, offline but for pip, in minutes
	$(BIN)/embedpipe demo $(OUT) $(DEMO_OPTIONS)

test: $(VENV)/.dev  ## every fast test that needs no GPU
	$(BIN)/python -m pytest $(BESIDE) -m "not slow" $(TEST_OPTIONS)

slow: $(VENV)/.dev  ## the other ones: models of real size, launchers, clusters, many kills
	$(BIN)/python -m pytest $(BESIDE) -m slow $(TEST_OPTIONS)

test-browser: $(VENV)/.dev  ## pages in Chromium, which it installs on Debian; leaves pictures of them in build/pages
	command -v chromium >/dev/null || { apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium; }
	$(BIN)/python -m pip install --quiet playwright
	EMBEDPIPE_PAGES=build/pages $(BIN)/python -m pytest tests/integration/test_serve_page.py \
	    tests/integration/test_page_widths.py $(TEST_OPTIONS)

check: $(VENV)/.dev  ## format, lint, import contracts, types, structure, links of the documentation
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/python -m tools.house --check
	$(BIN)/python -m tools.docs_site

repeat: $(VENV)/.dev  ## the fast tests again and again: are they always green? `--help` says more
	$(BIN)/python tools/repeat_suite.py $(or $(N),30) --busy $(or $(BUSY),10)

wheel:  ## build the distribution, install it outside the tree, run every command there
	$(PYTHON) tools/check_wheel.py $(WHEEL_OPTIONS)

docs: $(VENV)/.dev  ## write docs/cli.md from the commands' own help, and all of docs/ as a site to build/site
	$(BIN)/python docs/generate_cli.py
	$(BIN)/python -m tools.docs_site

bench: $(VENV)/.dev  ## every benchmark with a goal, in its small form, and the page of what they found
	$(BIN)/python -m benchmarks.every $(BENCH_OPTIONS)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools wheel

# torch and torchvision are resolved together: a mismatched pair does not import.
$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
