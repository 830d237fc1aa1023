# Shortcuts for contributors; CONTRIBUTING.md says what there is to test, and .ci/run is what a merge needs.
.PHONY: check test fast docs mutants

check:  ## format, lint, types
	ruff format --check .
	ruff check .
	mypy
	mypy benchmarks

test:  ## everything
	pytest

fast:  ## what is worth running before every commit: less than two minutes
	pytest -m "not slow"

docs:  ## every command, snippet and link on the pages, and the examples
	pytest tests/test_docs.py tests/test_examples.py

mutants:  ## faults put into the code one at a time, and which of them no test notices: two hours, no part of CI
	mutmut run
	mutmut results
