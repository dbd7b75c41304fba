"""Damages the bytes of a valid file: as a disk or a transfer would, and as a hostile or careless author would."""

import io
import json
import math
import random
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch
from ruamel.yaml import YAML
from torch import Tensor

RAW = "\x01"  # marks a value that is written without quotes, since Python's json cannot write it
JSON: list[Any] = [
    *(None, True, -1, 0, 1.5, 10**30, math.nan, math.inf, "", " ", "x", "\ud800", "a\0b", "a\nb", "1", "2020-99-99"),
    *([], {}, [[]], ["x"], {"x": 1}, "y" * 100_000, " " * 100_000, "/dev/zero", "../x"),
    *(RAW + text for text in ("1e999", "9" * 5_000, "[" * 20_000, "[" * 2_000 + "]" * 2_000, "{")),
]
OBJECTS = [*JSON[:25], {0: 0}, torch.zeros(3), torch.tensor(math.nan), torch.zeros(2, 2, 2)]
ARRAYS = [np.zeros((2, 2), np.uint16), np.array("x"), np.array(None)]
YAML_VALUES = [*JSON, *(RAW + text for text in ("2020-99-99", "!!int abc", "!!python/name:os", "*x", "&a [*a]", "~"))]


def dumps(tree: Any) -> bytes:
    """JSON with the RAW values as they are."""
    return re.sub(r'"\\u0001([^"]*)"', r"\1", json.dumps(tree)).encode()


def _written(write: Callable[[io.BytesIO], Any]) -> bytes:
    out = io.BytesIO()
    write(out)
    return out.getvalue()


class Codec(NamedTuple):
    """How the values in a kind of file are taken out and put back, and the hostile values to put there."""

    load: Callable[[bytes], Any]
    dump: Callable[[Any], bytes]
    values: Sequence[Any]


_YAML = Codec(lambda data: YAML(typ="safe", pure=True).load(data), dumps, YAML_VALUES)
CODECS = {
    "json": Codec(json.loads, dumps, JSON),
    "jsonl": Codec(
        lambda data: [json.loads(line) for line in data.splitlines()], lambda t: b"\n".join(map(dumps, t)), JSON
    ),
    "yaml": _YAML,
    "lock": _YAML,
    "pt": Codec(lambda d: torch.load(io.BytesIO(d)), lambda t: _written(lambda out: torch.save(t, out)), OBJECTS),
    "safetensors": Codec(safetensors.torch.load, safetensors.torch.save, OBJECTS),
    "npy": Codec(lambda d: np.load(io.BytesIO(d)), lambda t: _written(lambda out: np.save(out, t)), ARRAYS),
    "parquet": Codec(
        lambda data: pq.read_table(io.BytesIO(data)).to_pydict(),
        lambda tree: _written(lambda out: pq.write_table(pa.table(tree), out)),
        OBJECTS,
    ),
}


def damaged(rng: random.Random, data: bytes, name: str) -> bytes:
    """Other content for the file `name`. Every decision is `rng`'s, so a seed gives the same content again."""
    codec = CODECS.get(name.rpartition(".")[2])
    if codec is not None and rng.random() < 0.6:
        try:
            return codec.dump(_changed(rng, codec.load(data), codec.values))
        except Exception:  # a format cannot hold every value: damage bytes instead
            pass
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        data = _scrambled(rng, data)
    return data


def _changed(rng: random.Random, node: Any, values: Sequence[Any]) -> Any:
    """The tree with one value, at any depth, replaced by a hostile one or by one much like it, removed or doubled."""
    keys = list(node) if isinstance(node, dict) else list(range(len(node))) if isinstance(node, list | tuple) else []
    if not keys or rng.random() < 0.1:
        return rng.choice([*values, *_alike(node)])
    copy, key = (dict(node) if isinstance(node, dict) else list(node)), rng.choice(keys)
    action = rng.randrange(8)
    if action == 0:
        del copy[key]
    elif action == 1:
        copy = {**copy, "x": copy[key]} if isinstance(copy, dict) else [*copy, copy[key]]
    else:
        copy[key] = _changed(rng, node[key], values)
    return copy


def _alike(value: Any) -> list[Any]:
    """Values that differ from `value` by little: another type, shape or size."""
    if isinstance(value, Tensor):
        nan = torch.full_like(value, math.nan) if value.is_floating_point() else value.float()
        return [nan, value.long(), value.bool(), value.double(), value.half(), value[None], value.flatten()]
    if isinstance(value, np.ndarray):
        return [value.astype(kind) for kind in (">u2", "i8", "f4", "?")] + [value[None], value[:-1], value[:0], ~value]
    if isinstance(value, int | float):
        return [value + 1, -value, value * 1000, float(value), str(value)]
    if isinstance(value, str):
        return [value[:-1], value * 2, value.upper(), f"{value}\n", f"../{value}", [value]]
    return []


def _scrambled(rng: random.Random, data: bytes) -> bytes:
    """The bytes with one change, often near the start: a header decides how the rest is read."""
    at = rng.randrange(max(min(len(data), rng.choice((16, 256, 10**9))), 1))
    end = at + rng.choice((1, 4, 100))
    words = list(re.finditer(rb'"[^"\n]*"|[\w.+-]+', data[:10_000]))
    action = rng.randrange(9)
    if action == 0:
        return rng.randbytes(rng.choice((0, 1, 8, 200)))
    if action == 1:
        return data[:at]
    if action == 2:
        return data[:at] + data[end:]
    if action == 3:
        return data[:end] + data[at:]
    if action == 4:
        junk = (b"\0", b"\xff", b"\xed\xa0\x80", b"\n", b"\xef\xbb\xbf", rng.randbytes(4))
        return data[:at] + rng.choice(junk) + data[at:]
    if action in (5, 6) and words:
        word, value = rng.choice(words), dumps(rng.choice(YAML_VALUES))
        return data[: word.start()] + value.strip(rng.choice((b"", b'"'))) + data[word.end() :]
    return data[:at] + bytes(byte ^ 1 << rng.randrange(8) for byte in data[at : at + 1]) + data[at + 1 :]
