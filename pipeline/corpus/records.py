"""Records: small typed JSON files that say what the files beside them hold."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.files import read_json, write_json

SplitName = Literal["train", "val"]


class Record(BaseModel):
    """A typed, frozen value that is kept as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    def write(self, path: Path) -> None:
        """Writes the record as indented JSON, atomically."""
        write_json(path, self.model_dump())


R = TypeVar("R", bound=Record)


def read_record(path: Path, kind: type[R], version: int, stage: str) -> R:
    """Reads a record with a `format_version`; `stage` is the one that writes it.

    Raises FileNotFoundError or ValueError that names the file and says which stage to run.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} not found: run the {stage} stage (dvc repro {stage})")
    values = read_json(path)
    found = values.get("format_version") if isinstance(values, Mapping) else None
    if found != version:
        raise ValueError(f"{path}: format_version ({found}) must be {version}: run the {stage} stage again")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"{path} is not what the {stage} stage writes: {error}") from None
