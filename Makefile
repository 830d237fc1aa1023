# Shortcuts for contributors; CONTRIBUTING.md says what there is to test, and .ci/run is what a merge needs.
.PHONY: check test fast docs

check:  ## format, lint, types
	ruff format --check .
	ruff check .
	mypy
	mypy benchmarks

test:  ## everything
	pytest

fast:  ## what is worth running before every commit: about two minutes
	pytest -m "not slow"

docs:  ## every command, snippet and link on the pages, and the examples
	pytest tests/test_docs.py tests/test_examples.py
