"""The model directory: all that is needed to evaluate, sample and export, with no params.yaml at hand.

model.safetensors   the weights, float32; a tied head is not stored twice
config.json         {"format_version": 1, "config": the fields of GPTConfig}
encoding/           the encoding's files, as `pipeline.corpus.encodings` writes them
"""

import shutil
from pathlib import Path
from typing import Any

import tiktoken
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.files import atomic_directory, read_json, write_json
from pipeline.log import logger
from pipeline.model import huggingface
from pipeline.model.config import GPTConfig
from pipeline.model.gpt import GPT

FORMAT_VERSION = 1
WEIGHTS, CONFIG, ENCODING = "model.safetensors", "config.json", "encoding"
CONTENTS = (WEIGHTS, CONFIG, ENCODING)


def save_model(directory: Path, model: GPT, encoding_directory: Path | None) -> None:
    """Writes a model directory, whole or not at all, in place of what was there. The weights become float32.

    Raises OSError, as where the disk is full.
    """
    with atomic_directory(directory, CONTENTS) as temporary:
        write_json(temporary / CONFIG, {"format_version": FORMAT_VERSION, "config": model.config.model_dump()})
        try:
            save_file(stored_weights(model), temporary / WEIGHTS)
        except SafetensorError as error:
            raise OSError(f"cannot write {directory / WEIGHTS}: {error}") from error
        if encoding_directory is not None:
            shutil.copytree(encoding_directory, temporary / ENCODING)


def load_model(directory: Path, device: str | torch.device = "cpu") -> GPT:
    """The model in a directory of ours, or in one that holds a Hugging Face GPT-2; in evaluation mode.

    Raises FileNotFoundError, or ValueError that names the file and what is wrong with it.
    """
    values = _read_config_file(directory)
    weights = read_weights(directory / WEIGHTS)
    if huggingface.is_huggingface(values):
        config = huggingface.config_from(values, directory / CONFIG)
        weights = huggingface.weights_from(weights, config)
    else:
        config = _own_config(values, directory / CONFIG)
    return build(config, weights, directory / WEIGHTS).to(device)


def match_vocabulary(model: GPT, encoding: tiktoken.Encoding, source: Path) -> None:
    """Takes the model's ids that the encoding has not for padding, as those of a Hugging Face GPT-2 of 50,304 ids.

    Raises ValueError that names `source` where the model's number of ids is none of `padded_sizes` of the encoding's.
    """
    ids, known = model.config.text_vocab_size, encoding.n_vocab
    if known > ids:
        raise ValueError(f"{source}: encoding {encoding.name} ({known} ids) exceeds the model's vocabulary ({ids})")
    if ids not in padded_sizes(known):
        raise ValueError(
            f"{source}: the model's vocabulary ({ids}) is more than the {known} ids of encoding {encoding.name} and "
            f"their padding to a multiple of 64 or 128 ({max(padded_sizes(known))} at most): its tokenizer is another"
        )
    if ids > known:
        logger.info("%s: ids %d to %d are padding", source, known, ids - 1)
        model.config = model.config.changed(text_vocab_size=known)


def padded_sizes(ids: int) -> set[int]:
    """Sizes that a vocabulary of `ids` ids is found in: its own, and the next multiples of 64 and 128.

    Any other number of rows may be tokens that were added to the encoding, with a meaning of their own.
    """
    return {-(-ids // multiple) * multiple for multiple in (1, 64, 128)}


def _read_config_file(directory: Path) -> dict[str, Any]:
    path = directory / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found: {directory} is no model directory")
    values = read_json(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path}: must hold an object, not {type(values).__name__}")
    return values


def _own_config(values: dict[str, Any], path: Path) -> GPTConfig:
    if (version := values.get("format_version")) != FORMAT_VERSION:
        raise ValueError(f"{path}: format_version ({version}) must be {FORMAT_VERSION}")
    try:
        return GPTConfig.model_validate(values["config"])
    except (KeyError, ValidationError) as error:
        raise ValueError(f"{path}: not the config of a model: {error}") from None


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors in a safetensors file. Raises FileNotFoundError, or ValueError that names the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from None


def build(config: GPTConfig, weights: dict[str, Tensor], source: Path) -> GPT:
    """A model with the given weights, in evaluation mode. Raises ValueError that names `source` and the tensors."""
    with torch.random.fork_rng(devices=[]):  # drawing weights that are replaced at once must not move the random state
        model = GPT(config)
    expected = stored_weights(model)
    wrong = [f"{name} missing" for name in expected.keys() - weights.keys()]
    wrong += [f"{name} unknown" for name in weights.keys() - expected.keys()]
    for name in expected.keys() & weights.keys():
        if weights[name].shape != expected[name].shape:
            wrong.append(f"{name} {tuple(weights[name].shape)} must be {tuple(expected[name].shape)}")
    if wrong:
        raise ValueError(f"{source} does not fit its config: {'; '.join(sorted(wrong)[:5])}")
    model.load_state_dict(weights, strict=False)
    return model.eval()


def stored_weights(model: GPT) -> dict[str, Tensor]:
    """The tensors of a model by name, float32 on the CPU; of a tied head and embedding, only the embedding."""
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if model.config.tie_head:
        del tensors["lm_head.weight"]
    return tensors
