"""The model directory: everything that is needed to evaluate, sample and export a model, without params.yaml.

    model.safetensors  the weights, float32; a tied head is not stored twice
    config.json        ModelFile
    tokenizer/         the tokenizer's files (pipeline/corpus/tokenizer.py)

Also the initial weights of a training run: `model.init_from` names an entry of `models/`, which is a text file (`random
weights`, or repository@revision on the Hugging Face hub) or a model directory, ours or a Hugging Face GPT-2.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import tiktoken
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.artifacts import Record
from pipeline.config import MODELS, SCRATCH
from pipeline.corpus.tokenizer import TOKENIZER_DIRECTORY, TOKENIZER_FILE, TokenizerConfig
from pipeline.files import atomic_directory, parsing, read_json, sha256_of
from pipeline.huggingface.convert import (
    CONFIG,
    HUB_ID,
    INDEX,
    PICKLES,
    WEIGHTS,
    config_from,
    download,
    is_huggingface,
    weights_from,
)
from pipeline.log import UserError, logger
from pipeline.model.config import OFF, GPTConfig, ModelParams
from pipeline.model.gpt import GPT

MODEL_FILES = (WEIGHTS, CONFIG, TOKENIZER_DIRECTORY)


class ModelFile(Record):
    """config.json of a model directory."""

    stage = "train"
    version = 2

    format_version: int
    config: GPTConfig


def save_model(directory: Path, model: GPT, tokenizer_directory: Path | None) -> None:
    """Writes a model directory atomically, replacing an older one. Weights become float32.

    Raises OSError if the disk is full.
    """
    with atomic_directory(directory, MODEL_FILES) as temporary:
        ModelFile(format_version=ModelFile.version, config=model.config).write(temporary / CONFIG)
        try:
            save_file(model.stored_weights(), temporary / WEIGHTS)
        except SafetensorError as error:
            raise OSError(f"cannot write {directory / WEIGHTS}: {error}") from error
        if tokenizer_directory is not None:
            shutil.copytree(tokenizer_directory, temporary / TOKENIZER_DIRECTORY)


def load_model(directory: Path, device: str | torch.device = "cpu") -> GPT:
    """The model in a directory, ours or a Hugging Face GPT-2, in evaluation mode.

    Raises FileNotFoundError, or UserError that names the file and what is wrong with it.
    """
    path = directory / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found: {directory} is not a model directory")
    values = read_json(path)
    source = _weights_file(directory)
    weights = _read_weights(source)
    if isinstance(values, dict) and is_huggingface(values):
        with parsing(path):
            config = config_from(values, path)
        weights = weights_from(weights, config)
    else:
        if isinstance(values, dict) and isinstance(values.get("config"), dict):
            values["config"] = {**OFF, **values["config"]}
        with parsing(path):
            config = ModelFile.parse(json.dumps(values), str(path)).config
    return _build(config, weights, source).to(device)


def _weights_file(directory: Path) -> Path:
    """model.safetensors, or Hugging Face's index of several such files. Raises UserError if there is only a pickle."""
    for name in (WEIGHTS, INDEX):
        if (directory / name).is_file():
            return directory / name
    if pickles := sorted(directory.glob(PICKLES)):
        raise UserError(
            f"{pickles[0]} is a pickle, which can run any code: convert it to {WEIGHTS} with transformers' "
            "AutoModelForCausalLM.from_pretrained(DIRECTORY).save_pretrained(NEW_DIRECTORY)"
        )
    raise FileNotFoundError(f"{directory / WEIGHTS} not found")


def _read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors in a safetensors file, or in those that an index names."""
    if path.name != INDEX:
        with parsing(f"{path}: damaged or not a safetensors file"):
            return load_file(path)
    values = read_json(path)
    with parsing(f"{path}: weight_map"):
        files = {name: str(file) for name, file in values["weight_map"].items()}
    weights: dict[str, Tensor] = {}
    for file in sorted(set(files.values())):
        if file != Path(file).name or not file.endswith(".safetensors") or not (path.parent / file).is_file():
            raise UserError(f"{path}: {file!r} must be a .safetensors file in the same directory")
        tensors = _read_weights(path.parent / file)
        for name in (name for name in files if files[name] == file):
            if name not in tensors:
                raise UserError(f"{path.parent / file}: no tensor {name}, which {INDEX} lists there")
            weights[name] = tensors[name]
    return weights


def _build(config: GPTConfig, weights: Mapping[str, Tensor], source: Path) -> GPT:
    """A model with the given weights, in evaluation mode.

    Raises UserError that names `source` and the tensors. Only a model of the weights' size is allocated.
    """
    with torch.random.fork_rng(devices=[]):  # the random weights are replaced at once: keep torch's random state
        with parsing(f"{source} does not match its config"):
            if mistakes := sorted(_mistakes(config, weights)):
                raise UserError(f"{source} does not match its config: {'; '.join(mistakes[:5])}")
        model = GPT(config)
    model.load_state_dict(weights, strict=False)  # a tied head is not among the weights
    return model.eval()


def _mistakes(config: GPTConfig, weights: Mapping[str, Tensor]) -> Iterator[str]:
    """A line for each tensor that is not a weight of the config's model."""
    if config.n_layer > len(weights):  # each block has several
        yield f"n_layer ({config.n_layer}) exceeds the number of tensors ({len(weights)})"
        return
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in GPT(config).state_dict().items()}
    if config.tie_embeddings:
        del expected["lm_head.weight"]
    for name in expected.keys() | weights.keys():
        tensor = weights.get(name)
        if tensor is None:
            yield f"{name} missing"
        elif name not in expected:
            yield f"{name} unknown"
        elif tuple(tensor.shape) != expected[name]:
            yield f"{name} {tuple(tensor.shape)} must be {expected[name]}"
        elif not tensor.is_floating_point():
            yield f"{name} ({tensor.dtype}) must be floating-point"
        elif not tensor.float().isfinite().all():
            yield f"{name} contains NaN or infinity"


def match_vocabulary(model: GPT, tokenizer: tiktoken.Encoding, source: Path) -> None:
    """Marks ids of the model that the tokenizer does not have as padding, which Hugging Face's config cannot tell.

    Raises UserError that names `source` if the model's number of ids is not in `padded_sizes` of the tokenizer's.
    """
    model_ids, tokenizer_ids = model.config.text_vocab_size, tokenizer.n_vocab
    name = f"tokenizer {tokenizer.name} ({tokenizer_ids} ids)"
    if tokenizer_ids > model_ids:
        raise UserError(f"{source}: {name} exceeds the model's vocabulary ({model_ids})")
    if model_ids not in padded_sizes(tokenizer_ids):
        raise UserError(
            f"{source}: the model's vocabulary ({model_ids}) is neither that of {name} nor padded to a multiple of 64 "
            f"or 128 ({max(padded_sizes(tokenizer_ids))} at most): the model was trained with another tokenizer"
        )
    if model_ids > tokenizer_ids:
        logger.info("%s: ids %d to %d are padding", source, tokenizer_ids, model_ids - 1)
        model.config = model.config.changed(text_vocab_size=tokenizer_ids)


def padded_sizes(ids: int) -> set[int]:
    """Common sizes of a vocabulary of `ids` ids: exact, or padded to a multiple of 64 or 128.

    Any other number of rows may mean tokens that were added to the tokenizer.
    """
    return {-(-ids // multiple) * multiple for multiple in (1, 64, 128)}


def check_tokenizer(directory: Path, sha256: str, source: str) -> None:
    """Raises UserError that names `source` if the model in a directory has another tokenizer than the shards.

    `sha256`: the fingerprint of the shards' tokenizer. Of a model without one, only the vocabulary can be compared.
    """
    if _tokenizer_sha256(directory) is None:
        return
    own = TokenizerConfig.read(directory / TOKENIZER_DIRECTORY / TOKENIZER_FILE)
    if own.sha256 != sha256:
        raise UserError(
            f"{source}: its tokenizer {own.name} ({own.n_vocab} ids, {own.sha256[:12]}) must be that of the shards "
            f"({sha256[:12]})"
        )


def _tokenizer_sha256(directory: Path) -> str | None:
    """The fingerprint of the tokenizer in a model directory; None without one."""
    path = directory / TOKENIZER_DIRECTORY
    return TokenizerConfig.read(path / TOKENIZER_FILE).sha256 if path.is_dir() else None


def initial_model(params: ModelParams, text_vocab_size: int, tokenizer_sha256: str, extends: str | None = None) -> GPT:
    """A model in training mode: random weights from torch's random state, or the weights that `init_from` names.

    `text_vocab_size`: ids of the shards' tokenizer; `tokenizer_sha256`: its fingerprint, which must be that of the
    weights' tokenizer. Loaded weights compute the same function as before: the context may be cropped, and padding of
    the vocabulary has probability zero. `extends`: the fingerprint of the tokenizer before a chat template's special
    tokens. If the weights' is that one, the new ids get the mean of all rows: the function barely changes
    (https://nlp.stanford.edu/~johnhew/vocab-expansion.html).
    Raises UserError that names each key in which the params do not describe the weights.
    """
    config = GPTConfig.from_params(params, text_vocab_size)
    if params.init_from == SCRATCH:
        return GPT(config)
    directory = weights_directory(initial_weights(params.init_from))
    loaded = load_model(directory)
    grows = extends is not None and _tokenizer_sha256(directory) == extends
    loaded_ids = loaded.config.text_vocab_size
    _check_fit(params, loaded.config, loaded_ids if grows else text_vocab_size, extends is not None)
    if not grows:
        check_tokenizer(directory, tokenizer_sha256, f"model.init_from ({params.init_from})")
    loaded.crop_block_size(config.block_size)
    weights = loaded.stored_weights()
    for name in ("transformer.wte.weight", "lm_head.weight"):
        if name in weights:
            rows = weights[name][:loaded_ids]  # (V, C)
            rows = torch.cat((rows, rows.mean(dim=0).expand(text_vocab_size - loaded_ids, -1)))
            weights[name] = torch.cat((rows, rows.new_zeros(config.vocab_size - len(rows), rows.size(1))))
    return _build(config, weights, directory).train()


def initial_weights(init_from: str) -> Path:
    """The entry of `models/` that `model.init_from` names. Raises UserError if there is none."""
    path = MODELS / init_from
    if not path.exists():
        no_weights = ("README.md", "bpe", "bytes")
        entries = sorted(p.name for p in MODELS.glob("[!.]*") if p.suffix != ".dvc" and p.name not in no_weights)
        raise UserError(
            f"model.init_from ({init_from}): {path} not found; models/ holds {', '.join(entries) or 'nothing'}"
        )
    return path


def initial_weights_hash(init_from: str) -> str:
    """The sha256 of the initial weights by content: of a file its bytes, of a directory all names and files."""
    path = initial_weights(init_from)
    if path.is_file():
        return sha256_of(path)
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file():
            digest.update(f"{file.relative_to(path).as_posix()} {sha256_of(file)}\n".encode())
    return digest.hexdigest()


def weights_directory(path: Path) -> Path:
    """The directory with the weights: `path`, or the download if it is a text file with repository@revision."""
    if path.is_dir():
        return path
    hub_id = path.read_text(encoding="utf-8", errors="replace").strip()
    if not HUB_ID.fullmatch(hub_id):
        raise UserError(
            f"{path} ({hub_id[:80]}): must be a model directory, or a file with owner/name@revision of the hub"
        )
    return download(hub_id)


def _check_fit(params: ModelParams, loaded: GPTConfig, text_vocab_size: int, extended: bool) -> None:
    """`extended`: whether special tokens of a chat template were added to the tokenizer."""
    mistakes = [
        f"model.{key} ({here}) must be {there}{' or less' if key == 'block_size' else ''}"
        for key, (here, there) in params.differences(loaded).items()
    ]
    if text_vocab_size != loaded.text_vocab_size:
        mistakes.append(f"the tokenizer's vocabulary ({text_vocab_size}) must be {loaded.text_vocab_size}")
        if extended:
            mistakes[-1] += (
                " (tokenizer.chat_template adds special tokens, which needs weights with the same tokenizer beside "
                f"them: python -m pipeline import {MODELS / params.init_from} models/imported; or a template whose "
                "only special token is <|endoftext|>)"
            )
        elif loaded.text_vocab_size in padded_sizes(text_vocab_size):  # only import reads the tokenizer to tell padding
            mistakes[-1] += (
                f" (if ids from {text_vocab_size} on are padding, import the model first: "
                f"python -m pipeline import {MODELS / params.init_from} models/imported)"
            )
    if mistakes:
        raise UserError(f"model.init_from ({params.init_from}): " + "; ".join(mistakes))
