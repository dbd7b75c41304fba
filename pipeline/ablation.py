"""An ablation: named steps from one configuration to another, each of which changes some settings.

Its YAML file maps the name of each step to its settings. The first step is the start; what it leaves out is as in
params.yaml:

    adamw: {train.optimizer: adamw, train.max_lr: 1.0e-3}
    muon: {train.optimizer: muon, train.max_lr: 6.0e-3}
    rope: {model.position: rope}
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import ConfigError, load_yaml
from pipeline.dvc_lock import flat

FULL, WITHOUT = "full", "without-"
"""Names: of the configuration with all steps; before the name of the step that a configuration leaves out."""


@dataclass(frozen=True)
class Ablation:
    """The steps in a file."""

    path: Path
    steps: Mapping[str, Mapping[str, Any]]
    """At least two: name -> dotted key -> value."""

    @property
    def keys(self) -> set[str]:
        """The dotted keys that any step sets."""
        return {key for settings in self.steps.values() for key in settings}

    def cumulative(self) -> dict[str, dict[str, Any]]:
        """The settings after each step, by the name of the step."""
        names = list(self.steps)
        return {name: self._merged(names[: index + 1]) for index, name in enumerate(names)}

    def leave_one_out(self) -> dict[str, dict[str, Any]]:
        """`full`: the settings with all steps; `without-NAME`: with all but one, which is not the first.

        A step is not left out if later steps set all its keys: that would change nothing.
        """
        full = self._merged(self.steps)
        names = list(self.steps)[1:]
        without = {f"{WITHOUT}{name}": self._merged(other for other in self.steps if other != name) for name in names}
        return {FULL: full, **{name: settings for name, settings in without.items() if settings != full}}

    def _merged(self, names: Iterable[str]) -> dict[str, Any]:
        return {key: value for name in names for key, value in self.steps[name].items()}


def read_ablation(path: Path) -> Ablation:
    """The ablation in a YAML file. Raises ConfigError if it is not a mapping of at least two named steps."""
    steps = load_yaml(path)
    for name, settings in steps.items():
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.+-]*", name, re.ASCII):
            raise ConfigError(f"{path}: {name!r}: a step's name must consist of letters, digits and _ . + -")
        if not isinstance(settings, Mapping):
            raise ConfigError(f"{path}: {name} ({settings!r}): must be a mapping of keys such as model.position")
    if len(steps) < 2:
        raise ConfigError(f"{path} has {len(steps)} step(s): there must be a start and at least one step from it")
    return Ablation(path, {name: flat(settings) for name, settings in steps.items()})
