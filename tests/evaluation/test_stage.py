"""The evaluate stage: files in, metrics out, the same from any number of processes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import read_sections
from pipeline.corpus import encodings
from pipeline.corpus.hellaswag_items import write_items
from pipeline.log import Stop
from pipeline.model.files import save_model
from pipeline.model.gpt import GPT
from pipeline.probes import choice_columns, training_probes
from pipeline.runtime import RuntimeParams
from pipeline.training.params import TrainParams
from stages import evaluate
from tests.evaluation.small import ALONE, BYTES, documents, many_items, tiny_model, write_val_split

ROOT = Path(__file__).parents[2]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with all that the stage reads; the current one."""
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    write_val_split(tmp_path / "data/shards", documents())
    save_model(tmp_path / "data/model", tiny_model(block_size=64), tmp_path / "data/shards/encoding")
    write_items(tmp_path / "data/hellaswag", many_items(13), "Next lines of the validation documents", False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def metrics(workplace: Path) -> dict[str, Any]:
    return json.loads((workplace / "reports/evaluate/metrics.json").read_text())


def run(processes: int) -> None:
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}"] if processes > 1 else []
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, *launcher, "-m", "stages.evaluate"], check=True, env=environment, timeout=120)


def test_metrics_have_the_loss_and_name_the_items(workplace: Path) -> None:
    evaluate.main()
    found = metrics(workplace)
    assert set(found) == {"val", "next_lines"}
    assert set(found["val"]) == {"loss", "perplexity", "bpb", "tokens"}
    assert found["val"]["tokens"] == len(documents()) - 1
    choices = found["next_lines"]
    assert (choices["items"], choices["is_hellaswag"]) == (13, False)
    for metric in ("acc", "acc_norm", "acc_norm_token"):
        assert 0 <= choices[metric] <= 1
        assert choices[f"{metric}_stderr"] >= 0


def test_real_items_are_called_hellaswag(workplace: Path) -> None:
    write_items(workplace / "data/hellaswag", many_items(2), "HellaSwag", True)
    evaluate.main()
    assert metrics(workplace)["hellaswag"]["items"] == 2


@pytest.mark.slow
def test_two_processes_write_the_same_metrics_as_one(workplace: Path) -> None:
    run(1)
    alone = metrics(workplace)
    (workplace / "reports/evaluate/metrics.json").unlink()
    run(2)
    assert metrics(workplace) == alone


def test_a_model_of_another_encoding_is_refused_and_old_metrics_stay(workplace: Path) -> None:
    evaluate.main()
    before = metrics(workplace)
    ranks = {bytes([byte]): 255 - byte for byte in range(256)}
    other = type(BYTES)("other", pat_str=r"\S+|\s+", mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 256})
    encodings.save(other, workplace / "other")
    save_model(workplace / "data/model", tiny_model(), workplace / "other")
    with pytest.raises(Stop, match=r"data/model/encoding: encoding other \(257 ids\) is not that of data/shards"):
        evaluate.main()
    assert metrics(workplace) == before


def test_an_imported_model_with_too_few_ids_is_refused(workplace: Path) -> None:
    save_model(workplace / "data/model", GPT(tiny_model().config.changed(vocab_size=64, text_vocab_size=64)), None)
    with pytest.raises(ValueError, match="exceeds the model's vocabulary"):
        evaluate.main()


def test_the_ids_of_an_imported_model_that_have_no_text_take_no_probability(workplace: Path) -> None:
    evaluate.main()
    before = metrics(workplace)
    model = tiny_model(block_size=64)
    assert model.config.vocab_size > model.config.text_vocab_size
    model.config = model.config.changed(text_vocab_size=model.config.vocab_size)  # as in Hugging Face's config
    save_model(workplace / "data/model", model, None)
    evaluate.main()
    assert metrics(workplace) == before


def test_the_probes_of_training_on_all_there_is_give_what_the_stage_gives(workplace: Path) -> None:
    evaluate.main()
    train, runtime = read_sections(TrainParams, RuntimeParams)
    train = train.model_copy(update={"eval_tokens": 10**6, "hellaswag_items": 13})
    runtime = runtime.model_copy(update={"dtype": "float32"})
    probes = training_probes(train, runtime, ALONE, BYTES, Path("data/shards"), Path("data/hellaswag"))
    measured: dict[str, float] = {}
    for probe in probes:
        measured |= probe.measure(tiny_model(block_size=64), 1)
    found = metrics(workplace)
    assert measured["val/loss"] == found["val"]["loss"]
    assert measured["val/bpb"] == found["val"]["bpb"]
    shares = {f"next_lines/{metric}": found["next_lines"][metric] for metric in ("acc", "acc_norm", "acc_norm_token")}
    assert {name: measured[name] for name in choice_columns(Path("data/hellaswag"))} == shares
