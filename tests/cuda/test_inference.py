"""Generation, benchmarks and validation loss on a GPU are those of a CPU in float32."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.artifacts import SampleSettings
from pipeline.distributed import Group
from pipeline.evaluation.benchmarks import answer, answers_of, build_questions
from pipeline.evaluation.scoring import score_requests
from pipeline.evaluation.val_loss import validation_loss
from pipeline.generation.sampling import NewToken, stream
from pipeline.inference import for_inference
from tests.evaluation.small import ALONE, BYTES, documents, many_items, tiny_model, write_val_split
from tests.model.configs import OPTIONS

MODELS = pytest.mark.parametrize("model", ["gpt2", "llama", "alibi, gqa, qk_norm"])
DTYPES = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-3)])
PROMPTS = [[256], list(b"Shall I"), list(b"more lovely")]


def new_tokens(model: str, group: Group, dtype: torch.dtype) -> list[NewToken]:
    settings = SampleSettings(max_new_tokens=24, temperature=0.0, top_k=0, top_p=1.0, seed=1)
    fast = for_inference(tiny_model(**OPTIONS[model]).to(group.device), dtype)
    return list(stream(fast, PROMPTS, settings, eot_id=BYTES.eot_token))


@MODELS
def test_greedy_texts(group: Group, model: str) -> None:
    """Longer than the context, so the window moves. In bfloat16 the texts may part after the first tokens."""
    expected, float32, bfloat16 = (
        new_tokens(model, *how) for how in ((ALONE, torch.float32), (group, torch.float32), (group, torch.bfloat16))
    )
    assert [(t.prompt, t.token) for t in float32] == [(t.prompt, t.token) for t in expected]
    assert [t.logprob for t in float32] == pytest.approx([t.logprob for t in expected], abs=1e-3)
    first = len(PROMPTS)
    assert [t.logprob for t in bfloat16[:first]] == pytest.approx([t.logprob for t in expected[:first]], abs=0.05)


@MODELS
@DTYPES
def test_hellaswag(group: Group, model: str, dtype: torch.dtype, tolerance: float) -> None:
    """The answers are those of float32 in both dtypes."""
    questions = build_questions("hellaswag", many_items(24), BYTES)
    requests = [question.request for question in questions]
    on_cpu, on_device = (tiny_model(**OPTIONS[model] | {"block_size": 64}).to(g.device) for g in (ALONE, group))
    expected = score_requests(on_cpu, requests, batch_size=4, dtype=torch.float32, group=ALONE)
    nats = score_requests(on_device, requests, batch_size=4, dtype=dtype, group=group)
    np.testing.assert_allclose(np.array(nats), np.array(expected), rtol=tolerance)
    result = answer(on_device, questions, batch_size=4, dtype=dtype, group=group)
    for metric, answers in answers_of(expected, questions).items():
        assert np.array_equal(result.answers[metric], answers)


@MODELS
@DTYPES
def test_validation_loss(tmp_path: Path, group: Group, model: str, dtype: torch.dtype, tolerance: float) -> None:
    split = write_val_split(tmp_path, documents())
    expected, loss = (
        validation_loss(
            tiny_model(**OPTIONS[model]).to(g.device),
            split,
            BYTES,
            tokens=None,
            stride=5,
            batch_size=4,
            dtype=d,
            group=g,
        )
        for g, d in ((ALONE, torch.float32), (group, dtype))
    )
    assert loss.nats_per_token == pytest.approx(expected.nats_per_token, rel=tolerance)
