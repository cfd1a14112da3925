# What a developer runs, inside a virtual environment. .github/workflows runs the same targets.
# ARGS is passed on to the program behind a target: make bench ARGS="--op refine --small"

ARGS ?=

.PHONY: help install test torches bench lint docs docs-serve wheels

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-10s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: ## Install the package editable, with everything that the other targets need
	python -m pip install $(ARGS) -e '.[dev]'

test: ## Run the tests
	pytest -n auto $(ARGS)

torches: ## Run the ops' contract on the oldest PyTorch and the newest (minutes)
	tools/torches.sh $(ARGS)

bench: ## Time every op next to plain PyTorch (minutes; with ARGS="--small", seconds)
	python -m bench.compare $(ARGS)

lint: ## Check style and types, without changing a file
	ruff check .
	ruff format --check .
	mypy
	git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs clang-format --dry-run -Werror

docs: ## Check the documents (snippets run; links, paths and commands exist) and build the site into build/site
	pytest -q tests/test_docs.py tests/test_links.py tests/test_tutorials.py $(ARGS)
	mkdocs build --quiet --strict
	python -m tools.site.check build/site

docs-serve: ## Show the site at http://127.0.0.1:8000 while you write
	mkdocs serve $(ARGS)

wheels: ## Build sdists and wheels of both distributions into dist/: all Pythons where there is Docker, else this one
	tools/wheels.sh $(ARGS)
