# The interpreter that .venv is made with: PYTHON=python3.12 make run
PYTHON ?= python3
VENV := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev run test test-nightly lint audit bench translations reference screenshots clean

help: ## list these targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

setup: ## make .venv, with what the program and its demo models need
	@$(PYTHON) scripts/setup.py

setup-dev: ## the same, with what the tests need
	@$(PYTHON) scripts/setup.py --dev

run: setup ## serve config.yaml
	@exec $(VENV)/python wsgi.py

test: lint ## lint, then the tests but for those of test-nightly
	$(VENV)/python -m pytest --ignore=tests/nightly -n auto --dist loadscope --no-loadscope-reorder

# One after the other: each of them loads the machine.
test-nightly: setup-dev ## kills, soak, fuzz, real models, the bench: some minutes
	$(VENV)/python -m pytest tests/nightly

lint: setup-dev ## ruff, mypy, import-linter and bandit
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	$(VENV)/mypy
	$(VENV)/lint-imports
	$(VENV)/bandit -q -c pyproject.toml -r manager routes jobs commands scripts wsgi.py

audit: setup ## look for known holes in what the program runs on; asks pypi.org
	$(VENV)/python -m pip install -q pip-audit
	$(VENV)/pip-audit --strict -r requirements.txt

bench: setup ## measure the program beside its upstream and nginx
	@$(VENV)/python -m bench

translations: setup-dev ## take new texts of the pages into translations/
	$(VENV)/pybabel -q extract -F pyproject.toml -w 100 --no-location --sort-output \
		-o translations/messages.pot routes templates
	$(VENV)/pybabel -q update -i translations/messages.pot -d translations -w 100 \
		--no-fuzzy-matching --ignore-obsolete --ignore-pot-creation-date
	rm translations/messages.pot
	$(VENV)/pybabel compile -d translations --statistics

reference: setup ## make config.schema.json and the tables of docs/config.md, commands.md, http-api.md
	@$(VENV)/python -m scripts.config_reference
	@$(VENV)/python -m scripts.command_reference
	@$(VENV)/python -m scripts.http_reference

screenshots: setup-dev ## take docs/pages/*.png of a program with simulated models
	@$(VENV)/python scripts/screenshots.py

clean: ## remove .venv and caches; data/ stays
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './data/*' -exec rm -rf {} +
