"""The `report` section of params.yaml: how the report of a run looks. Nothing here changes a number in it."""

from typing import ClassVar

from pydantic import Field, field_validator

from pipeline.config import Section


class ReportParams(Section):
    """The report's words and lines."""

    section: ClassVar[str] = "report"

    title: str = Field(min_length=1)
    """First line of the report: what this run is, in a few words. One line of text."""

    smoothing: float = Field(ge=0.0, lt=1.0)
    """Smoothing of the training loss curve, drawn in front of the raw one, at least 0 (none) and below 1. Each point is
    averaged with those before and behind it, which weigh exponentially less with their distance; 0.9 averages over
    about ten points."""

    @field_validator("title")
    @classmethod
    def _one_line(cls, title: str) -> str:
        if not title.strip() or len(title.splitlines()) > 1:
            raise ValueError("must be one line of text")
        return title
