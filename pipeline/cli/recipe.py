"""Named sets of params, printed as flags for `dvc exp run` or written to params.yaml.

python -m pipeline recipe
dvc exp run $(python -m pipeline recipe gpt2-124m)
python -m pipeline recipe gpt2-124m --apply
"""

import argparse
import sys

from pipeline.config import PARAMS_FILE
from pipeline.files import write_text
from pipeline.formatting import hydra_value
from pipeline.recipes import RECIPES, apply_recipe, flags, names, with_changes


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline recipe", description="Named sets of params. Without a name: lists them."
    )
    parser.add_argument("name", nargs="?", help="the recipe to print as flags for dvc exp run")
    parser.add_argument("--apply", action="store_true", help="write it to params.yaml instead")
    options = parser.parse_args(arguments)
    if options.name is None:
        width = max(map(len, names()), default=0)
        for name in names():
            first_line = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8", errors="replace").partition("\n")[0]
            print(f"{name:<{width}}  {first_line.removeprefix('# ')}")
        return
    overlay = apply_recipe(options.name)
    for key, committed in overlay.reverted.items():
        print(f"recipe: {key} reverted to the committed {hydra_value(committed)}", file=sys.stderr)
    if options.apply:
        write_text(PARAMS_FILE, with_changes(PARAMS_FILE.read_text(encoding="utf-8"), overlay.changes))
    else:
        print("\n".join(f"-S {flag}" for flag in flags(overlay.changes)))
