# make demo   convert the shipped checkpoint, generate text with llama-cli, compare with PyTorch
# make test   everything that CI runs, as many files of tests at once as there are processors
# make quick  the tests that need no compiler, in under a minute
# make test-gpu   the tests of Vulkan, on a GPU or on Mesa's driver for the processor; says what it lacks
# Both make .venv and build llama.cpp on first use; later runs find both ready.

PYTHON  ?= python3
BIN     := .venv/bin
READY   := .venv/.ready
MODEL   := tests/data/sotu-sherry
TEXT    := tests/data/sotu-heldout.txt
GGUF    := .demo/sotu-sherry-SHERRY.gguf

.PHONY: demo test test-gpu quick clean

demo: $(READY)
	@mkdir -p $(dir $(GGUF))
	$(BIN)/sherry-gguf build
	$(BIN)/sherry-gguf convert $(MODEL) --outfile $(GGUF) --force
	$$($(BIN)/sherry-gguf which llama-cli) -m $(GGUF) -p "My fellow citizens," -n 64 --temp 0.6 --seed 6 --single-turn </dev/null
	$(BIN)/sherry-gguf parity $(MODEL) $(GGUF) --text $(TEXT) --chunks 40

test: $(READY)
	$(BIN)/sherry-gguf build --tests
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

test-gpu: $(READY)
	$(BIN)/python -m pytest -rs -s tests/native/test_vulkan.py

quick: $(READY)
	$(BIN)/python -m pytest -m "not runtime and not slow"

$(READY): pyproject.toml scripts/constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint scripts/constraints.txt --editable '.[test]'
	@touch $@

clean:
	rm -rf .venv .demo .pytest_cache .mypy_cache .ruff_cache
