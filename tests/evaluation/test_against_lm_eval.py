"""The harness protocol against lm-evaluation-harness itself, with a model exported to Hugging Face's form."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.corpus import encodings
from pipeline.corpus.hellaswag_items import Item
from pipeline.evaluation.hellaswag import score_items
from pipeline.model.export import export_model
from tests.evaluation.small import ALONE, BYTES, item, many_items, tiny_model

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (docs/evaluation.md says how)")

BRACKETED = [
    item(
        ctx_a=f"[header] How to tie {number} knots [title] Begin. [step] Take it.",
        ctx_b="" if number % 2 else "[step] the Rope",
        endings=("[step] over [substeps] under.", "[title] a.", f"goes round {number} times", "is – cut. "),
        label=number % 4,
    )
    for number in range(8)
]


@pytest.mark.slow
@pytest.mark.parametrize("block_size", [128, 24])  # 24: nearly everything is cut to the context
def test_answers_are_those_of_the_harness(tmp_path: Path, block_size: int) -> None:
    from benchmarks.harness import METRICS, harness_is_right

    items: list[Item] = [*many_items(24), *BRACKETED]
    if block_size < 128:  # the harness takes no ending that is longer than the context
        items = [one for one in items if max(len(ending.encode()) for ending in one.endings) < 20]
    assert len(items) >= 15
    model = tiny_model(block_size=block_size)
    encodings.save(BYTES, tmp_path / "encoding")
    export_model(model, tmp_path / "encoding", tmp_path / "exported")
    theirs = harness_is_right(tmp_path / "exported", items)
    ours = score_items(model, BYTES, items, batch_size=8, dtype=torch.float32, group=ALONE)
    for metric in METRICS:
        right = (ours.answers[metric] == ours.labels).astype(int)
        assert np.array_equal(right, theirs[metric]), metric
        assert 0 < right.mean() < 1  # a test of nothing would pass where all are right or wrong
