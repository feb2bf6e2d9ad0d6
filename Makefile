# make quickstart   the main job: demonstrations, three training stages, evaluations
# make test         lint, types and tests
# make test-slow    whole runs, faults and several processes, which CI runs as well
# make doctor       names whatever is missing on this machine
# make vulkan       installs a software Vulkan driver for images and videos (apt and root)
# Each installs into .venv on first use and whenever pyproject.toml or constraints.txt changes. PYTHON= chooses the interpreter.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
PIP_INSTALL = $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt
SUITABLE := import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))
PYTHON ?= $(shell for python in python3.11 python3.12 python3.10 python3 python; do \
	$$python -c '$(SUITABLE)' 2>/dev/null && { echo $$python; break; }; done)

.PHONY: quickstart test test-slow lint format doctor vulkan install clean
.DELETE_ON_ERROR:

quickstart: $(STAMP)
	@$(BIN)/python quickstart.py

test: lint
	@$(BIN)/python -m pytest -q --numprocesses auto --maxprocesses 4 --dist loadfile

test-slow: $(STAMP)
	@$(BIN)/python -m pytest -q -m slow --numprocesses auto --maxprocesses 4 --dist loadfile

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(STAMP)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

doctor: $(STAMP)
	@$(BIN)/python -m reinflow.doctor

vulkan:
	@.ci/vulkan

install: $(STAMP)

clean:
	rm -rf $(VENV)

$(STAMP): pyproject.toml constraints.txt
	@[ -n "$(PYTHON)" ] || { \
		echo "error: no Python 3.10-3.12 with venv found: install one (Debian, Ubuntu: python3-venv) or pass PYTHON=/path/to/python" >&2; \
		exit 2; }
	@$(PYTHON) -c '$(SUITABLE)' || { echo "error: $(PYTHON) is not a Python 3.10-3.12 with venv: pass another PYTHON=" >&2; exit 2; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "installing into $(VENV) (a few minutes the first time)"
	@$(PIP_INSTALL) --editable ".[dev]"
	@# ManiSkill asks for opencv-python, which needs the system's libGL; the headless build puts the same cv2 in its place
	@$(PIP_INSTALL) --no-deps --force-reinstall opencv-python-headless
	@rm -f $(VENV)/.installed-*
	@touch $@
