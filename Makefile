# Two commands from a bare clone: `make repro` and `make test`. Each makes .venv first where it is missing.
.PHONY: repro features report test format push pull bench app pin hashes

PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
VENV := .venv/ready

repro: $(VENV)
	dvc repro $(shell PATH="$(PATH)" dvc remote default >/dev/null 2>&1 && echo --pull)
	@python -m tools.report

features: $(VENV)
	dvc repro $(shell PATH="$(PATH)" dvc remote default >/dev/null 2>&1 && echo --pull) featurize
	@echo "Next: git add -A && git commit, so that dvc.lock names these features; then make push"

report: $(VENV)
	@python -m tools.report $(REVISIONS) --html report.html

test: $(VENV)
	python -m tests.support.browser
	ruff check .
	ruff format --check .
	mypy
	python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder $(TESTS)

format: $(VENV)
	ruff check --fix .
	ruff format .

push pull: $(VENV)
	python -m tools.drive $@

app: $(VENV)
	python -m app.main

pin: $(VENV)
	python -m tools.pin $(or $(VERSION),$(error VERSION is missing: make pin VERSION=v1.0.0))

bench: $(VENV)
	python -m bench.features

$(VENV): pyproject.toml constraints.txt .ci/hashes.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --no-deps --require-hashes --requirement .ci/hashes.txt
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[app,experiments,test]'
	@touch $@

# For every platform. Which build of torch, with NVIDIA's libraries or without, is for the second of those lines.
hashes:
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--constraint constraints.txt --extra app --extra experiments --extra test --output-file .ci/hashes.part pyproject.toml
	awk '/^[^ ]/ { left_out = /^(torch=|triton=|nvidia-(cu|nccl|nv)|cuda-)/ } !left_out' .ci/hashes.part > .ci/hashes.txt
	@rm .ci/hashes.part
