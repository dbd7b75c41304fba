"""How each documented command is checked. Every one is held to its program's parser, and params to their rules
(`validation.py`); and of these three, one holds:

    it is a step of STEPS, which a test runs in a small project;
    it runs experiments or is one of LONG: `python -m tests.docs.run_commands` runs it, which takes many minutes;
    it is in NOT_RUN, with the reason.
"""

from typing import NamedTuple


class Step(NamedTuple):
    """A command in the story that the test plays: the author's clone, and where `colleague`, another one."""

    command: str
    says: str = ""
    """What it must print."""
    instead: str = ""
    """What is run in its place, where as documented it would take minutes, or ask."""
    colleague: bool = False
    patiently: bool = False
    """Whether it is run again and again until it prints that."""


STEPS = [
    # README: run it
    Step("dvc repro", "up to date"),
    Step("dvc dag", "| tokenize |"),
    Step('python -m pipeline.generation "O Romeo, Romeo" --model data/model', "O Romeo, Romeo"),
    Step("python -m pipeline.export_model data/model exported", "from_pretrained"),
    # README: change one thing, compare
    Step("dvc exp run --name bold -S sample.temperature=0.5", "Running stage 'sample'"),
    Step("dvc exp apply HEAD", "have been applied"),
    Step(
        "dvc exp run --name deep -S model.n_layer=6",
        "Running stage 'train'",
        instead="dvc exp run --name deep -S model.n_layer=1",
    ),
    Step("dvc exp apply HEAD"),
    Step("dvc exp show --only-changed", "[deep]"),
    Step("python -m pipeline.reporting.compare", "reports/compare.md"),
    Step("dvc metrics diff HEAD deep", "val.bpb"),
    Step("dvc plots show", "index.html"),
    Step("dvc plots diff HEAD deep", "index.html"),
    # README: sweep. Cookbook: an experiment of the queue failed
    Step("python -m pipeline.sweep model.position=learned,rope,alibi train.seed=1,2,3 --dry-run", "9 to run"),
    Step(
        "python -m pipeline.sweep model.position=learned,rope,alibi train.seed=1,2,3",
        "python -m pipeline.reporting.compare",
        instead="python -m pipeline.sweep report.title=one",
    ),
    Step(
        "dvc exp run --queue -S 'model.position=learned,rope,alibi' -S 'train.seed=1,2,3'",
        "Queued experiment 'wild'",
        instead="dvc exp run --queue --name wild -S model.n_head=5",
    ),
    Step("", "Queued experiment 'calm'", instead="dvc exp run --queue --name calm -S train.max_steps=1_000_000"),
    Step("dvc queue start", "new experiments task queue worker"),
    Step("", "step 10", instead="dvc queue logs calm", patiently=True),
    Step("dvc queue status", "Failed"),
    Step("dvc queue logs wild", "train: params.yaml has 1 mistake(s):"),
    Step("dvc queue kill calm", "calm has been killed"),
    Step("", "stopped after step", instead="dvc queue logs calm", patiently=True),
    Step("dvc queue stop"),
    Step("dvc queue remove --failed", "Removed tasks in queue: "),
    # README: share
    Step("dvc remote add -d store s3://bucket/gpt", "Setting 'store' as a default remote"),
    Step('git commit -m "Keep data in the store" .dvc/config', "1 file changed"),
    Step("git push -u origin main"),
    Step("dvc push", "files pushed"),
    Step(
        "dvc exp run --name deeper -S model.n_layer=8",
        "Ran experiment(s): deeper",
        instead="dvc exp run --name deeper -S model.n_layer=1",  # as deep: from DVC's run cache
    ),
    Step("dvc exp push origin deeper", "uploaded"),
    Step("dvc repro --pull", "up to date", colleague=True),
    Step("dvc exp list origin", "deeper", colleague=True),
    Step("dvc exp pull origin deeper", "Pulled experiment", colleague=True),
    Step("dvc exp apply deeper", "have been applied", colleague=True),
    Step("dvc repro", "up to date", colleague=True),
    Step("dvc pull train", "up to date", colleague=True),
    Step("dvc exp branch deeper eight-layers", "Git branch 'eight-layers'", colleague=True),
    # Cookbook: cleaning up
    Step("dvc exp remove bold deep", "Removed experiments"),
    Step("dvc exp remove --queue"),
    Step("dvc gc --all-commits --all-experiments", "Removed", instead="dvc gc --all-commits --all-experiments --force"),
    # Recipes, and what they cost
    Step("python -m pipeline.recipe", "gpt2-124m"),
    Step("python -m pipeline.recipe gpt2-124m", "-S model.n_embd=768"),
    Step("python -m pipeline.plan", "parameters"),
    Step("python -m pipeline.sweep model.n_embd=512 model.n_head=8 --dry-run", "1 to run"),
    Step("python -m pipeline.plan --recipe gpt2-124m --ranks 8", "8 x H100"),
    Step("python -m pipeline.plan --recipe gpt2-124m --ranks 8 --tokens-per-sec 1_400_000", "1h59m"),
    Step("python -m pipeline.recipe gpt2-124m --apply"),
]

LONG = [
    "dvc repro -f",
    "dvc repro --force download",
    "NPROC_PER_NODE=2 dvc repro",
    "MAX_RESTARTS=3 dvc repro",
    "OMP_WAIT_POLICY=PASSIVE dvc repro",
]

_GPU = "for GPUs"
_HUB = "fetches from the Hugging Face hub"
_MACHINES = "needs a second machine; python -m tests.docs.run_commands plays it in a second folder"
_REMOTE = "as the README's, which is run; tests/pipeline_runs/test_remotes.py runs it too"

NOT_RUN = {
    "make repro": "sets up a virtual environment; the pipeline itself is run by tests/pipeline_runs",
    "make test": "runs this",
    ". .venv/bin/activate": "the tests run in an environment of their own",
    "dvc exp run --name gpt2 $(python -m pipeline.recipe gpt2-124m)": _GPU,
    "dvc exp run $(python -m pipeline.recipe gpt2-124m)": _GPU,
    "python -m pipeline.recipe gpt2-124m --apply && dvc repro": _GPU,
    "dvc repro tokenize": "of a recipe: fetches from the Hugging Face hub",
    "dvc exp run --name char $(python -m pipeline.recipe shakespeare-char)": _GPU,
    "dvc exp run --name tuned $(python -m pipeline.recipe finetune-gpt2)": _HUB,
    "dvc exp run --name tuned-mine $(python -m pipeline.recipe finetune-gpt2)"
    " -S data.source=files -S 'data.files=[texts/*.txt]'": _HUB,
    "dvc exp run --name stories -S data.source=hub -S data.hub_path=roneneldan/TinyStories"
    " -S data.hub_name=null -S data.max_bytes=100_000_000": _HUB,
    "NNODES=2 NODE_RANK=0 RDZV_ENDPOINT=host0:29500 dvc repro train": _MACHINES,
    "NNODES=2 NODE_RANK=1 RDZV_ENDPOINT=host0:29500 python -m pipeline.launch stages.train": _MACHINES,
    "rsync -aH --exclude .venv --exclude .runs host0:gpt-pipeline/ gpt-pipeline/": _MACHINES,
    "rsync -aH --exclude .venv first-machine:gpt-pipeline/ gpt-pipeline/": _MACHINES,
    "cd gpt-pipeline && dvc repro": _MACHINES,
    "pip install -r requirements-s3.txt": "fetches from a package index",
    "dvc remote add -d store /mnt/shared/gpt": _REMOTE,
    "dvc remote add --local -d store /mnt/shared/gpt": _REMOTE,
    "dvc remote modify store endpointurl http://store.example.org:9000": _REMOTE,
    "dvc remote modify --local store access_key_id ...": _REMOTE,
    "dvc remote modify --local store secret_access_key ...": _REMOTE,
    "git add dvc.lock params.yaml reports": "Git's own",
    'git commit -m "Train with RoPE"': "Git's own",
    "git push": _REMOTE,
}


def is_experiment(command: str) -> bool:
    """Whether a command runs or queues experiments."""
    return command.startswith(("dvc exp run ", "python -m pipeline.sweep ")) and not command.endswith(" --dry-run")


def is_long(command: str) -> bool:
    """Whether `python -m tests.docs.run_commands` runs a command."""
    return (is_experiment(command) and command not in NOT_RUN) or command in LONG
