"""The command line: `python -m pipeline` lists the commands, `python -m pipeline COMMAND --help` explains one."""

import importlib
import re
import sys
from collections.abc import Callable

from pipeline.log import UserError, cli_errors

# Command -> (module:function that runs it, what it does). A module is imported only when its command runs.
COMMANDS = {
    "plan": ("pipeline.cli.plan:main", "what params.yaml or a recipe will cost: parameters, FLOPs, memory, time"),
    "recipe": ("pipeline.cli.recipe:main", "named sets of params: list, print as -S flags, apply"),
    "sweep": ("pipeline.cli.sweep:main", "run every combination of settings as DVC experiments"),
    "slurm": ("pipeline.cli.slurm:main", "submit training, tokenization or a sweep to a SLURM cluster"),
    "compare": ("pipeline.cli.compare:main", "experiments side by side, with tests of significance"),
    "report": ("pipeline.cli.report:main", "write reports/report.html, the interactive report"),
    "evaluate": ("pipeline.cli.evaluate:main", "validation loss and benchmarks of models, side by side"),
    "generate": ("pipeline.cli.generate:main", "sample text from a model"),
    "import": ("pipeline.cli.convert:import_main", "make a model directory from GPT-2's or Hugging Face weights"),
    "export": ("pipeline.cli.convert:export_main", "write a model as a Hugging Face directory"),
    "verify": ("pipeline.cli.verify:main", "check shards byte for byte against their manifest"),
    "doctor": ("pipeline.cli.doctor:main", "repair what a killed process has left, so that DVC runs again"),
    "parameters": ("pipeline.cli.parameters:main", "write docs/parameters.md, the reference of all keys"),
    "launch": ("pipeline.cli.launch:main", "start a stage on every visible GPU, or on all cores (used by dvc.yaml)"),
}


def main(arguments: list[str]) -> None:
    """Runs one command; without one, lists them. Exits with 2 where there is no such command."""
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print("usage: python -m pipeline COMMAND ...\n")
        for name, (_, description) in COMMANDS.items():
            print(f"  {name:<{width}}  {description}")
        return
    name, *rest = arguments
    if name not in COMMANDS:
        print(f"pipeline: no command {name!r}; the commands are {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    with cli_errors(name):
        for argument in rest:
            if re.search("[\udc80-\udcff]", argument):  # how Python passes bytes that are not UTF-8
                raise UserError(f"argument {argument!r}: not valid UTF-8")
        load_command(name)(rest)


def load_command(name: str) -> Callable[[list[str]], None]:
    """The function that runs a command."""
    module, _, function = COMMANDS[name][0].partition(":")
    run: Callable[[list[str]], None] = getattr(importlib.import_module(module), function)
    return run


if __name__ == "__main__":
    main(sys.argv[1:])
