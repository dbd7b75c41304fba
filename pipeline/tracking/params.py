"""The `tracking` section of params.yaml: where a run is watched. No stage lists it, since it changes no result."""

from typing import ClassVar, Literal

from pipeline.config import Section


class TrackingParams(Section):
    """Weights & Biases."""

    section: ClassVar[str] = "tracking"

    mode: Literal["auto", "online", "offline", "disabled"]
    """auto: the variable WANDB_MODE if set; else online where a key is configured, offline where none is."""

    project: str
    """W&B project."""

    entity: str | None
    """W&B user or team; null: the key's default."""

    group: str | None
    """Runs of the same name here, from the same commit, are one W&B group; `python -m pipeline.sweep` sets it. null:
    all runs from a commit are one group."""

    tags: list[str]
    """Tags of the run, beside its text and its encoding."""
