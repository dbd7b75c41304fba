"""Shared by tests that evaluate: shards of known tokens, a model for them, benchmark items."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tiktoken
import torch

from pipeline.artifacts import MANIFEST_FILE, SOURCE_FILE, BenchmarkSource, Manifest, Shard, Split, TaskSource
from pipeline.corpus.benchmarks import HellaSwagItem, Item, items_file, write_items
from pipeline.corpus.shards import TokenStream
from pipeline.corpus.tokenizer import bytes_tokenizer, fingerprint, save_tokenizer, token_byte_lengths
from pipeline.distributed import Group
from pipeline.files import sha256_of
from pipeline.model.gpt import GPT
from tests.model.configs import TINY

ALONE = Group(rank=0, world_size=1, device=torch.device("cpu"))
BYTES = bytes_tokenizer()
TEXT = "Shall I compare thee to a summer's day? Thou art more lovely – and more temperate: " * 4


def tiny_model(**changes: object) -> GPT:
    """A model for the bytes tokenizer, with weights large enough for clear preferences."""
    torch.manual_seed(5)
    model = GPT(TINY.changed(**({"vocab_size": 320, "text_vocab_size": BYTES.n_vocab} | changes)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0 if parameter.dim() > 1 else 1.0)
    return model


def documents(count: int = 3) -> npt.NDArray[np.uint16]:
    """Tokens of a few documents, each starting with the end-of-text token."""
    tokens: list[int] = []
    for number in range(count):
        tokens += [BYTES.eot_token, *BYTES.encode_ordinary(f"{number}. {TEXT}")]
    return np.array(tokens, np.uint16)


def write_val_split(
    directory: Path, tokens: npt.NDArray[np.uint16], tokenizer: tiktoken.Encoding = BYTES, shard_tokens: int = 100
) -> TokenStream:
    """Shards of a validation split only, cut so that windows cross the ends of shards."""
    directory.mkdir(parents=True, exist_ok=True)
    shards = []
    for number, start in enumerate(range(0, len(tokens), shard_tokens)):
        path = directory / f"val_{number:06d}.npy"
        part = tokens[start : start + shard_tokens]
        np.save(path, part)
        shards.append(Shard(file=path.name, tokens=len(part), sha256=sha256_of(path)))
    split = Split(
        tokens=len(tokens),
        documents=int((tokens == tokenizer.eot_token).sum()),
        utf8_bytes=int(token_byte_lengths(tokenizer)[np.minimum(tokens, tokenizer.n_vocab - 1)].sum()),
        shards=shards,
    )
    manifest = Manifest(
        format_version=Manifest.version,
        tokenizer_name=tokenizer.name,
        tokenizer_sha256=fingerprint(tokenizer),
        vocab_size=tokenizer.n_vocab,
        eot_id=tokenizer.eot_token,
        dtype="uint16",
        shard_tokens=shard_tokens,
        splits={"val": split},
    )
    manifest.write(directory / MANIFEST_FILE)
    save_tokenizer(tokenizer, directory / "tokenizer")
    return TokenStream(directory, manifest, "val")


def item(
    endings: tuple[str, ...] = (" a.", " b.", " c.", " d."), label: int = 0, ctx_a: str = "A man.", ctx_b: str = "he"
) -> HellaSwagItem:
    """An item; its ctx is ctx_a and ctx_b, as in HellaSwag."""
    ctx = f"{ctx_a} {ctx_b}".strip()
    return HellaSwagItem(ind=0, activity_label="Go", ctx_a=ctx_a, ctx_b=ctx_b, ctx=ctx, endings=endings, label=label)


def many_items(count: int) -> list[HellaSwagItem]:
    """Items of many lengths that fit a context of 64 bytes."""
    words = ["runs", "sits down", "is", "walks away", "sings", "goes to it", "stops", "a", "holds it up"]
    return [
        item(
            ctx_a="A " + "big " * (number % 5) + "man.",
            ctx_b="he" * (number % 2),
            endings=tuple(f"{words[(number * 7 + other * (3 + number % 4)) % 9]} {'!' * other}" for other in range(4)),
            label=number % 4,
        )
        for number in range(count)
    ]


def write_benchmarks(directory: Path, **tasks: Sequence[Item]) -> None:
    """A data/benchmarks with the items of each task."""
    for task, items in tasks.items():
        write_items(items_file(directory, task), items)
    sources = {task: TaskSource(items=len(items), origin="a test") for task, items in tasks.items()}
    BenchmarkSource(tasks=sources).write(directory / SOURCE_FILE)
