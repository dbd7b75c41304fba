"""The first weights of a training run, as `model.init_from` says."""

from pathlib import Path

from torch import Tensor

from pipeline.files import read_json
from pipeline.model.config import GPT2_SIZES, GPTConfig, ModelParams
from pipeline.model.files import ENCODING, build, load_model, padded_sizes, stored_weights
from pipeline.model.gpt import GPT
from pipeline.model.huggingface import fetch


def initial_model(params: ModelParams, text_vocab_size: int, encoding_sha256: str | None = None) -> GPT:
    """A model in training mode: random (from torch's random state), or with the weights that `init_from` names.

    `text_vocab_size` ids of the encoding that the shards are in, and its sha256, which must be that of the weights'.
    Loaded weights keep their function: a shorter context is cropped, padding of the vocabulary has probability zero.
    Raises FileNotFoundError, or ValueError that names each key in which the weights do not fit the params.
    """
    config = GPTConfig.from_params(params, text_vocab_size)
    if params.init_from == "scratch":
        return GPT(config)
    released = params.init_from in GPT2_SIZES
    directory = fetch(params.init_from) if released else Path(params.init_from)
    if not directory.is_dir():
        names = ", ".join(("scratch", *GPT2_SIZES))
        raise FileNotFoundError(f"model.init_from ({params.init_from}): neither one of {names} nor a directory")
    loaded = load_model(directory)
    _check_fit(params, loaded.config, text_vocab_size)
    _check_encoding(params, directory, encoding_sha256)
    loaded.crop_block_size(config.block_size)
    weights = stored_weights(loaded)
    for name in ("transformer.wte.weight", "lm_head.weight"):
        if name in weights:
            weights[name] = _padded(weights[name][:text_vocab_size], config.vocab_size)
    return build(config, weights, directory).train()


def _check_fit(params: ModelParams, loaded: GPTConfig, text_vocab_size: int) -> None:
    wrong = [
        f"model.{key} ({here}) must be {there}{' or less' if key == 'block_size' else ''}"
        for key, (here, there) in params.differences(loaded).items()
    ]
    if text_vocab_size != loaded.text_vocab_size:
        wrong.append(f"the encoding's vocabulary ({text_vocab_size}) must be {loaded.text_vocab_size}")
        if loaded.text_vocab_size in padded_sizes(text_vocab_size):  # training reads no tokenizer's files to tell
            wrong[-1] += (
                f" (if ids from {text_vocab_size} on are padding, import the model first: "
                f"python -m pipeline.import_model {params.init_from} models/imported)"
            )
    if wrong:
        raise ValueError(f"the weights of model.init_from ({params.init_from}) need: " + "; ".join(wrong))


def _check_encoding(params: ModelParams, directory: Path, encoding_sha256: str | None) -> None:
    path = directory / ENCODING / "encoding.json"
    if encoding_sha256 is None or not path.is_file():
        return
    theirs = read_json(path)["sha256"]
    if theirs != encoding_sha256:
        raise ValueError(
            f"model.init_from ({params.init_from}): its encoding ({theirs[:12]}) is not that of the shards "
            f"({encoding_sha256[:12]}), so its ids mean other texts"
        )


def _padded(rows: Tensor, count: int) -> Tensor:
    """rows (V, C) -> (count, C), zeros below."""
    padded = rows.new_zeros(count, rows.size(1))
    padded[: rows.size(0)] = rows
    return padded
