# The front door: `make help`. Paths here are relative, so that a space in the folder's own path does no harm.
PYTHON ?= python3
CONFIG ?= launch/configs/demo.toml
# Told to commands, so that the next one they print works where it is typed.
export DIG_RL_CALLED_FROM := $(value PWD)
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export TORCH_EXTENSIONS_DIR := $(CURDIR)/.cache/torch_extensions
# Says which accelerator there is before DeepSpeed, asked at every import of transformers, wonders aloud.
export DS_ACCELERATOR ?= $(if $(wildcard /dev/nvidia0),cuda,cpu)

PY := .venv/bin/python
# What a variable is given on the command line holds as it stands: make would read a dollar sign in it.
$(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(eval override export $(name) := $$(value $(name)))))
# An option, where its variable is given: $(call option,--out,OUT). The shell puts the value in, so its quotes do no harm.
option = $(if $(value $(2)),$(1) "$$$(2)")
NO_CHANGE = $(if $(ALLOW_NO_CHANGE),--allow-no-change)
SETTINGS = $(call option,--set,SET) $(if $(ALLOW_NO_CHANGE),--set data.allow_no_change=true)
CHANGED_PLUGINS = $(if $(ALLOW_CHANGED_PLUGINS),--allow-changed-plugins)
# For commands with a default of their own: a config only where the user names one
NAMED_CONFIG = $(if $(filter-out file,$(origin CONFIG)),--config "$$CONFIG")
WITH_CONFIG = $(or $(NAMED_CONFIG),--config $(CONFIG))

# What evaluations share
ON_DATA = $(call option,--data,DATA) $(call option,--split,SPLIT) $(call option,--samples,SAMPLES) \
  $(call option,--temperature,TEMPERATURE) $(NAMED_CONFIG) $(SETTINGS)

.DEFAULT_GOAL := help
.PHONY: help setup setup-blender doctor demo data data-check data-import data-export policy warmup nano ablations train export \
	eval compare eval-refcoco serve suites replay report compare-runs reward-test reward-report curriculum-preview bench \
	bench-long submit tensorboard \
	test test-fast test-long test-pins lint clean need-python

help: ## list every target
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "Start with: make demo"

need-python:
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "Python 3.11 is needed and '$(PYTHON)' is not on PATH (Debian, Ubuntu: apt-get install python3.11" \
	       "python3.11-venv python3.11-dev); or name one: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }

setup: need-python ## build .venv; EXTRA=cpu|gpu overrides what the machine suggests
	@"$(PYTHON)" -m launch.setup $(call option,--extra,EXTRA)

setup-blender: need-python ## build .venv-blender, the renderer's own environment
	@"$(PYTHON)" -m launch.setup --blender

doctor: setup ## versions, devices, memory, and whether they fit CONFIG=
	@$(PY) -m launch.doctor $(WITH_CONFIG) $(SETTINGS)

demo: setup setup-blender ## the whole thing, small: render, train through three stages, evaluate, report
	@$(PY) -m launch.demo $(SETTINGS)

# A recipe with renderer = "numpy" needs no Blender.
WITHOUT_BLENDER = $(shell grep -qsE '^renderer *= *"numpy"' -- '$(subst ','\'',$(value CONFIG))' && echo yes)
data: setup $(if $(WITHOUT_BLENDER),,setup-blender) ## render image pairs: CONFIG= OUT= COUNT= WORKERS= RAY=host:port|auto|local
	@$(PY) -m launch.data $(NAMED_CONFIG) $(call option,--out,OUT) \
	  $(call option,--count,COUNT) $(call option,--workers,WORKERS) $(call option,--ray,RAY)

data-check: setup ## is a data folder sound? writes a contact sheet: DATA= OUT= WORKERS= MASKS=numpy|blender|none SHEET_PAIRS= ALLOW_NO_CHANGE=1
	@$(PY) -m launch.data_check $(call option,--data,DATA) $(call option,--out,OUT) $(call option,--workers,WORKERS) \
	  $(call option,--masks,MASKS) $(call option,--sheet-pairs,SHEET_PAIRS) $(NO_CHANGE)

data-import: setup ## your own pairs as a data folder: FORMAT=pairs FROM= OUT= BOXES= SPLITS=0.8,0.1,0.1; or a published set: FORMAT= FROM= OUT= SPLIT= SKIP_BAD=1
	@$(PY) -m launch.data_import $(call option,--format,FORMAT) $(call option,--from,FROM) \
	  $(call option,--out,OUT) $(call option,--boxes,BOXES) $(call option,--splits,SPLITS) $(call option,--split,SPLIT) \
	  $(if $(SKIP_BAD),--skip-bad)

data-export: setup ## a data folder for pycocotools, TRL or EasyR1: FORMAT=coco|trl|easyr1 DATA= OUT= CONFIG= ALLOW_NO_CHANGE=1
	@$(PY) -m launch.data_export $(call option,--format,FORMAT) $(call option,--data,DATA) \
	  $(call option,--out,OUT) $(NAMED_CONFIG) $(NO_CHANGE)

policy: setup ## build a small policy with random weights: CONFIG= OUT=
	@$(PY) -m launch.policy $(NAMED_CONFIG) $(call option,--out,OUT)

warmup: setup ## supervised start of a policy: CONFIG= OUT= SET=
	@$(PY) -m launch.warmup $(WITH_CONFIG) $(call option,--out,OUT) $(SETTINGS)

nano: setup ## dig-nano from random weights, in pieces, the same command goes on: SEEDS="0 1 2" SET=
	@$(PY) -m launch.nano $(call option,--seeds,SEEDS) $(SETTINGS)

ablations: setup ## which part of the method does what: arms x seeds at one budget, in pieces: ONLY="arms" SEEDS= MINUTES= SET= LEDGER= DRY_RUN=1
	@$(PY) -m launch.ablations $(call option,--recipe,RECIPE) $(call option,--ledger,LEDGER) \
	  $(call option,--only,ONLY) $(call option,--seeds,SEEDS) \
	  $(call option,--minutes,MINUTES) $(SETTINGS) $(if $(DRY_RUN),--dry-run) $(if $(REPORT_ONLY),--report-only)

train: setup ## train: CONFIG= RUN= SET="learner.lr=1e-6 ..." ALLOW_NO_CHANGE=1 ALLOW_CHANGED_PLUGINS=1; the same RUN continues
	@$(PY) -m launch.train $(WITH_CONFIG) $(call option,--run,RUN) $(SETTINGS) $(CHANGED_PLUGINS)

export: setup ## a checkpoint as a Hugging Face folder: CHECKPOINT=runs/x/checkpoints/step-12|best OUT=
	@$(PY) -m launch.export $(call option,--checkpoint,CHECKPOINT) $(call option,--out,OUT)

eval: setup ## measure a policy or stored answers: CHECKPOINT=|PREDICTIONS= DATA= SPLIT= SAMPLES= TEMPERATURE= OUT=
	@$(PY) -m launch.evaluate $(call option,--checkpoint,CHECKPOINT) $(call option,--predictions,PREDICTIONS) \
	  $(ON_DATA) $(call option,--out,OUT)

compare: setup ## is B better than A on the same pairs? A= B= (policies or stored answers) DATA= SPLIT= OUT=
	@$(PY) -m launch.compare $(call option,--a,A) $(call option,--b,B) $(ON_DATA) $(call option,--out,OUT)

# What commands about one checkpoint share
OF_CHECKPOINT = $(call option,--checkpoint,CHECKPOINT) $(NAMED_CONFIG) $(SETTINGS)
eval-refcoco: setup ## Acc@0.5 on RefCOCO/+/g from a local copy: CHECKPOINT= FROM= SPLIT="refcoco_val ..." LIMIT= OUT=
	@$(PY) -m launch.evaluate_refcoco $(OF_CHECKPOINT) $(call option,--from,FROM) \
	  $(call option,--split,SPLIT) $(call option,--limit,LIMIT) $(call option,--out,OUT)

serve: setup ## an OpenAI-compatible server on this machine, until Ctrl-C: CHECKPOINT= PORT= LOG=
	@$(PY) -m launch.serve $(OF_CHECKPOINT) $(call option,--port,PORT) $(call option,--log,LOG)

suites: setup ## the paper's benchmarks against it: CHECKPOINT= TOOL=vlmevalkit|lmms-eval RUN_TOOLS=1 ONLY= JUDGE= OUT=
	@$(PY) -m launch.suites $(OF_CHECKPOINT) $(call option,--tool,TOOL) $(if $(RUN_TOOLS),--execute) \
	  $(call option,--only,ONLY) $(call option,--url,URL) $(call option,--vlmevalkit,VLMEVALKIT) \
	  $(call option,--tool-python,TOOL_PYTHON) $(call option,--max-tokens,MAX_TOKENS) \
	  $(call option,--judge,JUDGE) $(call option,--judge-url,JUDGE_URL) \
	  $(call option,--parallel,PARALLEL) $(call option,--out,OUT)

replay: setup ## recorded rollouts again, without an engine: RUN= STEP= SET= (another reward) NO_LOSS=1 CHECKPOINT=
	@$(PY) -m launch.replay $(call option,--run,RUN) $(call option,--step,STEP) $(if $(NO_LOSS),--no-loss) $(OF_CHECKPOINT) \
	  $(call option,--out,OUT)

report: setup ## rewrite runs/RUN/report.html: RUN=
	@$(PY) -m launch.report $(call option,--run,RUN)

compare-runs: setup ## several runs side by side in one page: RUNS="a b c" OUT=
	@$(PY) -m launch.compare_runs $(call option,--runs,RUNS) $(call option,--out,OUT)

reward-test: setup ## does a reward plugin keep the contract? REWARD=path.py:function KWARGS="match_iou = 0.75"
	@$(PY) -m launch.reward_test $(call option,--reward,REWARD) $(call option,--kwargs,KWARGS)

reward-report: setup ## what a reward pays scripted policies, and where it pays nonsense: CONFIG= SET= OUT=
	@$(PY) -m launch.reward_report $(NAMED_CONFIG) $(call option,--out,OUT) $(SETTINGS)

curriculum-preview: setup ## what a curriculum would draw from the data, as tables and a picture: CONFIG= SET= OUT=
	@$(PY) -m launch.curriculum_preview $(WITH_CONFIG) $(call option,--out,OUT) $(SETTINGS)

bench: setup setup-blender ## our speed against named alternatives, into runs/bench: ONLY="names" RUN=
	@$(PY) -m launch.bench $(call option,--only,ONLY) $(call option,--run,RUN)

bench-long: setup setup-blender ## figures that take many minutes each, into runs/bench: ONLY="names"
	@$(PY) -m launch.bench --long $(call option,--only,ONLY)

submit: setup ## send a run to a cluster: CONFIG= RUN= SET= TARGET=ray|slurm NODES= DRY_RUN=1
	@$(PY) -m launch.submit $(call option,--target,TARGET) $(call option,--nodes,NODES) $(if $(DRY_RUN),--dry-run) \
	  $(WITH_CONFIG) $(call option,--run,RUN) $(SETTINGS) $(CHANGED_PLUGINS)

tensorboard: setup ## curves, pictures and answers of all runs on http://127.0.0.1:6006
	@echo "Begin with http://127.0.0.1:6006/#custom_scalars (docs/tensorboard.md)"
	@.venv/bin/tensorboard --logdir runs --host 127.0.0.1 --samples_per_plugin images=200,text=200

# A file of tests stays in one process, so that what its tests share is made once. Their order: tests/conftest.py.
IN_PARALLEL = -n 2 --dist loadfile --no-loadscope-reorder
test: setup setup-blender ## all tests but the long ones, under 20 minutes
	@$(PY) -m pytest $(IN_PARALLEL) -m "not long"

test-fast: setup ## tests that start no heavy process and not many, under 2 minutes
	@$(PY) -m pytest $(IN_PARALLEL) -m "not slow and not long"

test-long: setup setup-blender ## every test
	@$(PY) -m pytest $(IN_PARALLEL)

test-pins: setup ## do the versions pinned for GPU machines still resolve? (dry run, installs nothing)
	@$(PY) -m pytest -m long -k pins tests/test_setup.py

lint: setup ## style, types, and the layers of imports
	@$(PY) -m ruff check
	@$(PY) -m ruff format --check
	@$(PY) -m mypy
	@.venv/bin/lint-imports

clean: ## remove caches and both environments; runs and data stay
	rm -rf .venv .venv-blender .cache .pytest_cache .ruff_cache .mypy_cache .import_linter_cache dig_rl.egg-info
	find dig_rl launch rewards tests -name __pycache__ -type d -prune -exec rm -rf {} +
