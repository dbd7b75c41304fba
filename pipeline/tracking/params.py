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

    tags: list[str]
    """Tags of the run."""
