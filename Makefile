# The team's habits. `make help` lists them.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

BIN := .venv/bin
PROFILE := profiles/demo
# One thread a process: the tests run two at a time on two cores. And no GPU: two ranks of a test cannot share one, and
# what is compared byte by byte is a CPU's work.
TEST_ENVIRONMENT := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 CUDA_VISIBLE_DEVICES=
# What the rules' jobs set for torch.
AS_JOBS := source workflow/launch.sh;
# Without a total as many jobs as cores would share the GPU; where there is none, no job waits for it.
GPU := $(if $(filter profiles/demo,$(PROFILE)),$(if $(shell nvidia-smi -L 2>/dev/null),--resources gpu=2))
TESTS := tests
# One file, or several, each over those before it: CONFIG="config/paper.yaml config/peers.yaml".
CONFIG := config/paper.yaml
# What is said with the command, not in the environment; `yes` if it is 1.
given = $(if $(findstring command,$(origin $1)),$($1))
yes = $(filter 1,$(call given,$1))
CIFAR10 := config/cifar10$(if $(call yes,SMALL),_small).yaml
DEMO := --replace-workflow-config --configfile config/demo.yaml

.PHONY: help setup demo cifar10 test test-slurm test-gpu check bench mutants faults voc-sanity smoke plan check-data status lock clean

help:  ## this list
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup:  ## .venv from envs/lock.txt; does nothing if it is there already
	@envs/setup.sh

demo: setup  ## generate small data sets, train, and make every table and figure and one page with all of them
	$(BIN)/snakemake --profile $(PROFILE) $(DEMO) $(GPU)
	$(BIN)/snakemake --profile $(PROFILE) $(DEMO) --report results/report.html
	@printf '%s\n' '' 'Done:' '  page     results/index.html, to read in a browser: all of it, and what each number is from' \
		'  tables   results/tables/table1.md … table7.md (and .csv)' \
		'  figures  results/figures/fig3.png fig4.png detection.png segmentation.png (and .svg)' '  report   results/report.html'

cifar10: setup  ## the suite's methods on CIFAR-10; BATCHES=…/cifar-10-batches-py the first time; SMALL=1: 20 minutes on two cores
	@$(if $(call given,BATCHES),$(BIN)/python -m uic_core.data.cifar --batches $(BATCHES) --out data/cifar10)
	$(BIN)/snakemake --profile $(PROFILE) --replace-workflow-config --configfile $(CIFAR10) $(GPU) \
		--prioritize $(CIFAR10:config/%.yaml=results/%)/runs/uic_128/checkpoint.safetensors # the longest job
	@printf '%s\n' '' 'Done: the page to read is $(CIFAR10:config/%.yaml=results/%)/index.html'

test: check  ## lint and every test; TESTS=tests/data runs a part
	@$(if $(filter tests,$(TESTS)),$(BIN)/python -m bench.one_node_slurm)
	$(TEST_ENVIRONMENT) $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --ignore tests/slurm $(TESTS)

test-slurm: setup  ## tests on a real one-node SLURM cluster, which is started and stopped here; needs root
	$(TEST_ENVIRONMENT) $(BIN)/python -m pytest -q -rs tests/slurm

test-gpu: setup  ## the tests that need a GPU
	$(BIN)/python -m pytest -q -rs -m gpu tests

check: setup  ## format, lint, types, workflow lint; pre-commit runs the same
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --profile $(PROFILE) --lint

bench: setup  ## speed and memory compared with peers, one line for each bar; make bench-boundary runs a part
	@$(AS_JOBS) $(BIN)/python -m bench

bench-%: setup
	@$(AS_JOBS) $(BIN)/python -m bench.$*

mutants: setup  ## plant small faults in code that decides numbers; show those the tests miss; an hour; COUNT=60 SEED=0 MODULES=…
	@$(BIN)/python -m bench.mutants $(if $(COUNT),--count $(COUNT)) $(if $(SEED),--seed $(SEED)) \
		$(if $(MODULES),--modules $(MODULES))

faults: setup  ## how each fault of the list ends, one line for each; ROWS="37 61" for some
	@$(TEST_ENVIRONMENT) $(BIN)/python -m bench.faults $(ROWS)

voc-sanity: setup  ## whether detection and segmentation learn what can be learned; an hour, one line for each bar
	@$(AS_JOBS) $(BIN)/python -m bench.voc_sanity

smoke: setup  ## a few images and steps of everything on your data, folders and machines: CONFIG=… PROFILE=slurm
	@small=$$($(BIN)/python -m uic_core.overview.smoke --config $(CONFIG)) && \
	UIC_FULL_CONFIG="$(CONFIG)" $(BIN)/snakemake --profile $(PROFILE) --replace-workflow-config --configfile $$small $(GPU)
	@printf '%s\n' '' 'Done: the machines, environments, data sets and folders work. Now the same without smoke; its own' \
		'results, in the folder smoke of the results, may be deleted.'

plan: setup  ## jobs, GPU-hours, disk, wall time of CONFIG; GPUS=8, CPUS=16 (for each GPU), PEAK=312 (TFLOP/s) or MEASURE=1
	@$(BIN)/python -m uic_core.overview.plan --config $(CONFIG) \
		$(addprefix --gpus=,$(call given,GPUS)) $(addprefix --cpus=,$(call given,CPUS)) \
		$(addprefix --peak=,$(call given,PEAK)) $(if $(call yes,MEASURE),--measure)

check-data: setup  ## whether every data set of CONFIG is there, and where to get what is missing
	@$(BIN)/python -m uic_core.overview.datasets --config $(CONFIG)

status: setup  ## how far the runs of CONFIG have come: epochs, evaluations, jobs, failures
	@$(BIN)/python -m uic_core.overview.status --config $(CONFIG)

lock: setup  ## compile envs/*.in into the lock and the conda environments; UPGRADE=1 takes newer versions
	$(BIN)/python envs/lock.py $(if $(call yes,UPGRADE),--upgrade)

clean: $(if $(call yes,RESULTS),setup)  ## remove caches; RESULTS=1 removes results of generated data and the demo's data too
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	$(if $(call yes,RESULTS),$(BIN)/python -m uic_core.overview.clean --results results && rm -rf data/demo)
