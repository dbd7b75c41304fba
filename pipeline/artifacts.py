"""One typed record per file that a stage leaves for another: written and read by the same class. No torch.

data/raw/source.json            RawCorpus          download
data/benchmarks/source.json     BenchmarkSource    download
data/shards/manifest.json       Manifest           tokenize
reports/train/metrics.json      TrainMetrics       train
reports/train/summary.json      RunSummary         train
reports/train/samples.json      TrainingSamples    train
reports/evaluate/metrics.json   EvaluationMetrics  evaluate
reports/sample/samples.json     Samples            sample
"""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_serializer, model_validator

from pipeline.files import write_json
from pipeline.log import UserError

SplitName = Literal["train", "val"]
TaskName = Literal["next_lines", "hellaswag", "lambada", "arc_easy", "arc_challenge", "piqa", "winogrande"]
TaskKey = Annotated[str, Field(pattern=f"^({'|'.join(get_args(TaskName))}|exact_match)$")]

SOURCE_FILE, MANIFEST_FILE = "source.json", "manifest.json"


class Record(BaseModel):
    """A typed, frozen value that is stored as JSON."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    stage: ClassVar[str] = ""
    """The stage that writes it; named in errors."""
    version: ClassVar[int | None] = None
    """What the field `format_version` must be, where the record has one."""

    def write(self, path: Path) -> None:
        """Writes the record as indented JSON, atomically."""
        write_json(path, self.model_dump(mode="json"))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads the record in a file. Raises FileNotFoundError, or UserError that names the file and what to run."""
        if not path.exists():
            raise FileNotFoundError(f"{path} not found: run the {cls.stage} stage (dvc repro {cls.stage})")
        return cls.parse(path.read_bytes(), str(path))

    @classmethod
    def parse(cls, text: str | bytes, name: str) -> Self:
        """The record in a JSON text; `name` is what errors call it. Raises UserError."""
        try:
            record = cls.model_validate_json(text)
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, part['loc']))} {part['msg']}".strip() for part in error.errors()[:5])
            raise UserError(f"{name} is not what the {cls.stage} stage writes: {wrong}") from None
        if cls.version is not None and (found := getattr(record, "format_version", None)) != cls.version:
            raise UserError(f"{name}: format_version ({found}) must be {cls.version}: run the {cls.stage} stage again")
        return record


# download


class RawFile(Record):
    """One parquet file of documents."""

    file: str
    """Its path in data/raw, `train/000000.parquet`."""
    documents: int
    utf8_bytes: int
    row_groups: int
    sha256: str


class RawCorpus(Record):
    """data/raw/source.json: the documents and where they came from."""

    stage = "download"
    version = 1

    format_version: int
    origin: dict[str, Any]
    """The source, and what pins its content: a version, a commit, or the sha256 of each file."""
    splits: dict[SplitName, list[RawFile]]

    def utf8_bytes(self, split: SplitName) -> int:
        return sum(file.utf8_bytes for file in self.splits.get(split, []))

    def documents(self, split: SplitName) -> int:
        return sum(file.documents for file in self.splits.get(split, []))


class TaskSource(Record):
    """The items of a benchmark."""

    items: int
    origin: str
    """A dataset with its commit, a file, or the validation documents."""


class BenchmarkSource(Record):
    """data/benchmarks/source.json: the benchmarks in the order of benchmarks.tasks."""

    stage = "download"

    tasks: dict[TaskKey, TaskSource]


# tokenize


COUNTS, STARTS = 1, 2
"""Bits of a mask: the token counts in the loss; it is the first of a document."""


class Shard(Record):
    """One file of tokens."""

    file: str
    """Its name in data/shards."""
    tokens: int
    sha256: str
    """Of the whole file, 64 hexadecimal digits."""
    mask_sha256: str | None = None
    """Of conversations: the same of the shard's mask file."""


class SplitSize(Record):
    """How large a split is."""

    tokens: int
    """End-of-text tokens included."""
    documents: int
    """Documents that begin in the split."""
    utf8_bytes: int
    """Bytes of UTF-8 text that the tokens decode to, for bits per byte. A special token is no text."""
    counted: int | None = None
    """Of conversations: tokens that count in the loss, the assistant's. None: all."""


class Split(SplitSize):
    """The shards of one split, in the stream's order."""

    shards: list[Shard]

    @property
    def size(self) -> SplitSize:
        return SplitSize.model_validate(self.model_dump(exclude={"shards"}))


class Manifest(Record):
    """data/shards/manifest.json: what the shards hold."""

    stage = "tokenize"
    version = 2

    format_version: int
    tokenizer_name: str
    tokenizer_sha256: str
    """pipeline.corpus.tokenizer.fingerprint."""
    vocab_size: int
    """Ids are 0 to vocab_size - 1."""
    eot_id: int
    """The end-of-text token's id."""
    dtype: Literal["uint16", "uint32"]
    shard_tokens: int
    """Tokens in every shard but the last of a split."""
    splits: dict[SplitName, Split]

    def write(self, path: Path) -> None:
        write_json(path, self.model_dump(mode="json", exclude_none=True))


# train


class TrainMetrics(Record):
    """reports/train/metrics.json: how much a finished run computed, and how fast. Its losses are in curves.csv."""

    stage = "train"

    tokens: int
    flops: int
    train_time_s: float
    """In training steps alone."""
    tokens_per_sec: float
    mfu: float | None
    """Model FLOPs utilisation, 0 to 1; None where the device's peak is unknown."""


class ParameterCounts(Record):
    """Parameters of a model."""

    total: int
    without_embeddings: int


class Hardware(Record):
    """What a run was computed on."""

    device: str
    device_name: str
    world_size: int
    cores: int
    """Of each machine."""
    dtype: str
    compile: bool
    micro_batch_size: int
    torch: str
    python: str

    def describe(self) -> str:
        """`2 cores (Intel Xeon)`, `8 × NVIDIA H100`."""
        if self.device != "cpu":
            return f"{self.world_size} × {self.device_name or self.device}"
        cores = "1 core" if self.cores == 1 else f"{self.cores} cores"
        return f"{cores} of a CPU" if self.device_name.lower() in ("", "cpu") else f"{cores} ({self.device_name})"


class TokenizerInfo(Record):
    """The tokenizer of a run."""

    name: str
    vocab_size: int


class CodeRevision(Record):
    """The Git commit that the code was run from."""

    revision: str | None
    """40 hexadecimal digits; None outside a repository, or before the first commit."""
    dirty: bool
    """Whether tracked files differed from it."""


class Resume(Record):
    """One resumption of a run."""

    step: int
    """Of the checkpoint."""
    changed_files: list[str]
    """Code of the train stage that differed from the code which wrote the checkpoint."""
    run: str | None = None
    """The key of the shorter run that wrote the checkpoint; None where it was this run."""


class TrackedRun(Record):
    """The W&B run of a training: in summary.json, and in wandb.json of an unfinished run's state."""

    stage = "train"

    id: str = Field(pattern=r"^[\w-]+$")
    name: str
    mode: str
    """online, offline or disabled."""
    group: str | None = None
    url: str | None = None


class RunSummary(TrainMetrics):
    """reports/train/summary.json: what was trained, on what, how long it took and from which code."""

    params: dict[str, dict[str, Any]]
    """The sections model and train."""
    parameters: ParameterCounts
    steps: int
    """Optimizer steps done; fewer than train.max_steps where train.patience stopped the run."""
    epochs: float | None = None
    """How often training read its split. Not tokens / tokens of the split: packed conversations have padding. None: an
    older file."""
    kept_step: int | None = None
    """The step whose weights data/model holds, with train.keep: best; None: the last."""
    wall_time_s: float
    """While a process of the run was training, probes and checkpoints included."""
    resumes: list[Resume]
    skipped_steps: int
    spikes: int
    hardware: Hardware
    tokenizer: TokenizerInfo
    data: dict[SplitName, SplitSize]
    git: CodeRevision
    wandb: TrackedRun


class TrainingSample(Record):
    """A sample drawn at one step of training."""

    step: int
    """Optimizer steps done."""
    tokens: int
    """Tokens trained on by then."""
    text: str
    """The prompt and its continuation."""


class TrainingSamples(Record):
    """reports/train/samples.json: samples drawn during training, in the order of steps; empty if there were none."""

    stage = "train"

    samples: list[TrainingSample]


# evaluate


class ValidationMetrics(Record):
    """Over every token of the validation split."""

    loss: float
    """Nats per token."""
    perplexity: float
    bpb: float
    """Bits per byte."""
    tokens: int


BENCHMARK_METRICS = ("acc", "acc_norm", "acc_norm_token", "perplexity")


class BenchmarkMetrics(Record):
    """Accuracies on a benchmark, 0 to 1, and perplexity, with their standard errors. None: not of this task."""

    name: str
    """What the benchmark is called in headings."""
    items: int
    truncated: int
    """Items that did not fit the model's context."""
    chance: float
    """Accuracy of guessing."""
    acc: float
    acc_stderr: float
    acc_norm: float | None = None
    acc_norm_stderr: float | None = None
    acc_norm_token: float | None = None
    acc_norm_token_stderr: float | None = None
    perplexity: float | None = None
    perplexity_stderr: float | None = None

    @property
    def metrics(self) -> list[str]:
        """Those that the task has."""
        return [name for name in BENCHMARK_METRICS if None not in self.value(name)]

    @property
    def accuracies(self) -> list[str]:
        """Those that are accuracies."""
        return [name for name in self.metrics if name != "perplexity"]

    @property
    def main(self) -> str:
        """The main metric of the benchmark."""
        return "acc_norm" if "acc_norm" in self.metrics else "acc"

    def value(self, metric: str) -> tuple[float, float]:
        """(value, standard error) of a metric."""
        return getattr(self, metric), getattr(self, f"{metric}_stderr")


class EvaluationMetrics(Record):
    """reports/evaluate/metrics.json: validation loss, and the results on each benchmark under its own key."""

    stage = "evaluate"

    val: ValidationMetrics
    benchmarks: dict[TaskKey, BenchmarkMetrics] = {}
    """By task, in the order of benchmarks.tasks; then exact_match, of conversations (evaluate.checker). In the file
    each is a key beside `val`."""

    @property
    def benchmark(self) -> BenchmarkMetrics | None:
        """The result on the first benchmark."""
        return next(iter(self.benchmarks.values()), None)

    @model_validator(mode="before")
    @classmethod
    def _nest(cls, values: Any) -> Any:
        if isinstance(values, dict) and "benchmarks" not in values:
            tasks = {key: value for key, value in values.items() if key != "val"}
            return {key: value for key, value in values.items() if key == "val"} | {"benchmarks": tasks}
        return values

    @model_serializer(mode="plain")
    def _flat(self) -> dict[str, Any]:
        """Only the keys that have values: `dvc metrics show` lists every key."""
        parts: dict[str, Record] = {"val": self.val, **self.benchmarks}
        return {key: part.model_dump(exclude_none=True) for key, part in parts.items()}


# sample


class SampleSettings(Record):
    """How samples were drawn: the keys of the `sample` section."""

    temperature: float = Field(ge=0)
    top_k: int = Field(ge=0)
    top_p: float = Field(gt=0, le=1)
    max_new_tokens: int = Field(ge=1)
    seed: int = Field(ge=0)


class PromptSamples(Record):
    """One prompt with its continuations."""

    prompt: str | None
    """None: the model starts a document."""
    continuations: list[str]


class Surprisal(Record):
    """A text with the cross entropy of each token, in nats."""

    text: str
    tokens: list[tuple[str, float]]


class Samples(Record):
    """reports/sample/samples.json."""

    stage = "sample"

    settings: SampleSettings
    prompts: list[PromptSamples]
    surprisal: Surprisal
