"""The `tracking` section of params.yaml. No stage lists it: where a run is logged changes none of its results."""

from typing import ClassVar, Literal

from pipeline.config import Section


class TrackingParams(Section):
    """Weights & Biases."""

    section: ClassVar[str] = "tracking"

    mode: Literal["auto", "online", "offline", "disabled"]
    """auto: the variable WANDB_MODE if set; else online with an API key, offline without one."""

    project: str
    """W&B project."""

    entity: str | None
    """W&B user or team; null: the default of the API key."""

    group: str | None
    """Runs with the same name here and from the same commit form one W&B group; `python -m pipeline sweep` sets it.
    null: all runs from a commit form one group."""

    tags: list[str]
    """Tags of the run, in addition to its data source and tokenizer."""
