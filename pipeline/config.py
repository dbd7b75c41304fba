"""Reads and validates params.yaml, the one source of hyperparameters.

Each section is owned by one class, a `Section`, next to the code that uses it. Before a stage does any work,
`read_sections` validates the whole file, so a mistake in the last section is reported before the first stage has
downloaded anything. All mistakes are reported at once, each with key, value and rule.

    data, benchmarks = read_sections(DataParams, BenchmarkParams)
"""

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Annotated, Any, ClassVar, TypeVar, overload

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent

from pipeline.files import parsing
from pipeline.log import UserError

PARAMS_FILE = Path("params.yaml")
MODELS = Path("models")
SCRATCH = "scratch"  # of model.init_from: random weights
DEEPEST_YAML = 100  # nested collections; ruamel's time grows with the square of the depth

# Section -> the class that owns it. Named by string and imported only when the file is checked: a stage depends, in
# dvc.yaml as in Python, on the classes of the sections that it uses and not on those of the others.
OWNERS = {
    "data": "pipeline.corpus.params:DataParams",
    "benchmarks": "pipeline.corpus.params:BenchmarkParams",
    "tokenizer": "pipeline.corpus.params:TokenizerParams",
    "model": "pipeline.model.config:ModelParams",
    "train": "pipeline.training.params:TrainParams",
    "evaluate": "pipeline.evaluation.params:EvaluateParams",
    "sample": "pipeline.generation.params:SampleParams",
    "report": "pipeline.reporting.params:ReportParams",
    "runtime": "pipeline.runtime:RuntimeParams",
    "tracking": "pipeline.tracking.params:TrackingParams",
}


class ConfigError(UserError):
    """params.yaml has mistakes. The message names every key, value and rule."""


class Section(BaseModel):
    """One section of params.yaml: typed and frozen. No defaults: every key must be in params.yaml."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        str_max_length=1_000_000,  # with a bound, pydantic also refuses lone surrogates, which no file can hold
        use_attribute_docstrings=True,
    )

    section: ClassVar[str]

    def cross_validate(self, sections: Mapping[str, "Section"]) -> Iterator[str]:
        """Yields a line for each rule between this section and another that is broken."""
        yield from ()


def _relative_to_models(value: str) -> str:
    if PurePath(value).is_absolute():
        raise ValueError("must be relative to models/: put the directory there, or a link to it")
    return value


# A name in models/, or a path relative to it. dvc.yaml makes it a dep, so that a stage depends on its content.
ModelsEntry = Annotated[
    str, Field(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f]*$"), AfterValidator(_relative_to_models)
]

A = TypeVar("A", bound=Section)
B = TypeVar("B", bound=Section)
C = TypeVar("C", bound=Section)
D = TypeVar("D", bound=Section)
E = TypeVar("E", bound=Section)


@overload
def read_sections(a: type[A], /) -> tuple[A]: ...
@overload
def read_sections(a: type[A], b: type[B], /) -> tuple[A, B]: ...
@overload
def read_sections(a: type[A], b: type[B], c: type[C], /) -> tuple[A, B, C]: ...
@overload
def read_sections(a: type[A], b: type[B], c: type[C], d: type[D], /) -> tuple[A, B, C, D]: ...
@overload
def read_sections(a: type[A], b: type[B], c: type[C], d: type[D], e: type[E], /) -> tuple[A, B, C, D, E]: ...
def read_sections(*classes: type[Section]) -> tuple[Section, ...]:
    """Validates all of params.yaml in the current directory and returns the sections asked for, in that order.

    Raises ConfigError with one line for each mistake.
    """
    sections = validate(load_yaml(PARAMS_FILE))
    return tuple(sections[cls.section] for cls in classes)


def load_yaml(path: Path, yaml: YAML | None = None) -> dict[str, Any]:
    """The mapping in a YAML file, read as DVC reads it: YAML 1.2, where `6e-05` is a number; or by `yaml`."""
    try:
        values = parse_yaml(path.read_bytes(), str(path), yaml)
    except FileNotFoundError:
        raise ConfigError(f"{path} not found in {Path.cwd()}: run from the root of the repository") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping, not {type(values).__name__}")
    return values


def parse_yaml(text: bytes | str, name: str, yaml: YAML | None = None) -> Any:
    """The value of a YAML text, read by `yaml` or else as DVC reads it. Raises ConfigError that begins with `name`.

    Aliases are refused: a few lines of them can expand to more values than fit into memory.
    """
    safe = YAML(typ="safe", pure=True)
    try:
        with parsing(f"{name} is not valid YAML"):
            text = text.decode() if isinstance(text, bytes) else text
            depth = 0
            for event in safe.parse(text):
                depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
                line = event.start_mark.line + 1
                if isinstance(event, AliasEvent):
                    raise ConfigError(f"{name}, line {line}: write out the value of *{event.anchor}")
                if depth > DEEPEST_YAML:
                    raise ConfigError(f"{name}, line {line}: more than {DEEPEST_YAML} nested collections")
            values = safe.load(text)
            return yaml.load(text) if yaml else values
    except UserError as error:
        cause = error.__cause__
        if isinstance(cause, MarkedYAMLError) and cause.problem_mark is not None:
            raise ConfigError(f"{name}, line {cause.problem_mark.line + 1}: {cause.problem}") from None
        raise ConfigError(str(error)) from None


def validate(values: Mapping[str, Any]) -> dict[str, Section]:
    """Checks every section in `values`; returns them by name. Raises ConfigError that lists all that is wrong."""
    mistakes = [f"{name}: unknown section; the sections are {', '.join(OWNERS)}" for name in values.keys() - OWNERS]
    sections: dict[str, Section] = {}
    for name in OWNERS:
        if name not in values:
            mistakes.append(f"{name}: section missing")
            continue
        try:
            sections[name] = owner(name).model_validate(values[name])
        except ValidationError as error:
            mistakes += [_describe(name, detail) for detail in error.errors()]
    if not mistakes:
        for section in sections.values():
            mistakes += section.cross_validate(sections)
    if mistakes:
        raise ConfigError(f"{PARAMS_FILE} has {len(mistakes)} mistake(s):\n" + "\n".join(f"  {m}" for m in mistakes))
    return sections


def owner(name: str) -> type[Section]:
    """The class that owns a section of params.yaml."""
    module, _, cls = OWNERS[name].partition(":")
    found: type[Section] = getattr(importlib.import_module(module), cls)
    return found


def _describe(section: str, error: Any) -> str:
    """One line for one pydantic error: key path, value, rule."""
    key = ".".join([section, *(str(part) for part in error["loc"])])
    if error["type"] == "missing":
        return f"{key}: key missing"
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown key"
    rule = error["msg"][0].lower() + error["msg"][1:]
    if error["type"] == "value_error":  # raised by a rule of ours
        rule = str(error["ctx"]["error"])
        if not error["loc"]:  # a rule between keys, which names them
            return rule
    return f"{key} ({repr(error['input'])[:200]}): {rule}"
