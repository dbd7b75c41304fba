"""What the tests of evaluation share: shards of known tokens, a model for them, items."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import tiktoken
import torch

from pipeline.corpus import encodings
from pipeline.corpus.hellaswag_items import Item
from pipeline.corpus.shards import FORMAT_VERSION, MANIFEST_FILE, Manifest, Shard, Split, TokenStream
from pipeline.distributed import Group
from pipeline.files import sha256_of
from pipeline.model.gpt import GPT
from tests.model.configs import TINY

ALONE = Group(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))
BYTES = encodings.bytes_encoding()
TEXT = "Shall I compare thee to a summer's day? Thou art more lovely – and more temperate: " * 4


def tiny_model(**changes: object) -> GPT:
    """A model for the bytes encoding, whose weights are large enough to prefer some tokens clearly."""
    torch.manual_seed(5)
    vocabulary = {"vocab_size": 320, "text_vocab_size": BYTES.n_vocab}
    model = GPT(TINY.changed(**(vocabulary | changes)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0 if parameter.dim() > 1 else 1.0)
    return model


def documents(count: int = 3) -> npt.NDArray[np.uint16]:
    """Tokens of a few documents, each with its end-of-text token in front."""
    tokens: list[int] = []
    for number in range(count):
        tokens += [BYTES.eot_token, *BYTES.encode_ordinary(f"{number}. {TEXT}")]
    return np.array(tokens, np.uint16)


def write_val_split(
    directory: Path, tokens: npt.NDArray[np.uint16], encoding: tiktoken.Encoding = BYTES, shard_tokens: int = 100
) -> TokenStream:
    """A directory of shards with a validation split alone, cut so that windows run over the ends of shards."""
    directory.mkdir(parents=True, exist_ok=True)
    shards = []
    for number, start in enumerate(range(0, len(tokens), shard_tokens)):
        path = directory / f"val_{number:06d}.npy"
        part = tokens[start : start + shard_tokens]
        np.save(path, part)
        shards.append(Shard(file=path.name, tokens=len(part), sha256=sha256_of(path)))
    utf8_bytes = int(encodings.token_byte_lengths(encoding)[np.minimum(tokens, encoding.n_vocab - 1)].sum())
    split = Split(
        tokens=len(tokens),
        documents=int((tokens == encoding.eot_token).sum()),
        utf8_bytes=utf8_bytes,
        shards=shards,
    )
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        encoding_name=encoding.name,
        encoding_sha256=encodings.identity(encoding),
        vocab_size=encoding.n_vocab,
        eot_id=encoding.eot_token,
        dtype="uint16",
        shard_tokens=shard_tokens,
        splits={"val": split},
    )
    manifest.write(directory / MANIFEST_FILE)
    encodings.save(encoding, directory / "encoding")
    return TokenStream(directory, manifest, "val")


def item(
    endings: tuple[str, ...] = (" a.", " b.", " c.", " d."), label: int = 0, ctx_a: str = "A man.", ctx_b: str = "he"
) -> Item:
    """An item; its ctx is ctx_a and ctx_b, as in the real ones."""
    ctx = f"{ctx_a} {ctx_b}".strip()
    return Item(ind=0, activity_label="Go", ctx_a=ctx_a, ctx_b=ctx_b, ctx=ctx, endings=endings, label=label)


def many_items(count: int) -> list[Item]:
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
