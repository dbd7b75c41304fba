"""HellaSwag: requests of both protocols, scores, answers, and parity with lm-evaluation-harness."""

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F

from benchmarks.hellaswag import score_one_at_a_time
from pipeline.corpus.hellaswag import Item
from pipeline.corpus.tokenizer import save_tokenizer
from pipeline.distributed import Group
from pipeline.evaluation import hellaswag
from pipeline.evaluation.hellaswag import (
    HARNESS,
    METRICS,
    PROTOCOLS,
    TOKEN_MEAN,
    HellaswagResult,
    Request,
    Scores,
    answer,
    answers_of,
    build_request,
    build_requests,
    encode_pair,
    preprocess,
    rows_at_once,
    score_requests,
    subset,
)
from pipeline.huggingface.export import export_model
from pipeline.model.gpt import GPT, sdpa
from pipeline.progress import Progress
from tests.evaluation.small import ALONE, BYTES, item, many_items, tiny_model
from tests.model.configs import OPTIONS
from tests.ranks import on_ranks


def score(model: GPT, items: list[Item], batch_size: int = 8, dtype: torch.dtype = torch.float32) -> HellaswagResult:
    return answer(model, build_requests(items, BYTES), batch_size=batch_size, dtype=dtype, group=ALONE)


def same_answers(a: HellaswagResult, b: HellaswagResult) -> bool:
    return all(np.array_equal(a.answers[metric], b.answers[metric]) for metric in METRICS)


def text(tokens: list[int]) -> str:
    return BYTES.decode(tokens)


# Requests, worked by hand after lm-evaluation-harness 0.4.13 and build-nanogpt.

WIKIHOW = Item(
    ind=24,
    activity_label="Home and Garden",
    ctx_a="[header] How to bake bread [title] Mix it. [step] Take flour.",
    ctx_b="[step] THEN water",
    ctx="[header] How to bake bread [title] Mix it. [step] Take flour. [step] THEN water",
    endings=("[step] is poured [substeps] slowly.", "burns.", " boils. ", "[title] Wait."),
    label=0,
)


def test_harness_request() -> None:
    request = build_request(WIKIHOW, HARNESS, BYTES)
    # "[step] THEN water" begins with a bracket, so capitalize() finds no letter to raise and lowers the rest.
    assert text(request.context) == "Home and Garden: How to bake bread. Mix it. Take flour. then water"
    # An ending is stripped before its brackets are removed: the first keeps the space that follows "[step]".
    assert [text(ending) for ending in request.endings] == ["  is poured slowly.", " burns.", " boils.", "  Wait."]
    # acc_norm counts characters without the space that joins the ending to its context.
    assert request.characters == [len(" is poured slowly."), len("burns."), len("boils."), len(" Wait.")]


def test_token_mean_request_has_the_raw_text() -> None:
    request = build_request(WIKIHOW, TOKEN_MEAN, BYTES)
    assert text(request.context) == WIKIHOW.ctx
    assert [text(ending) for ending in request.endings] == [f" {ending}" for ending in WIKIHOW.endings]


def test_activitynet_request() -> None:
    activitynet = item(ctx_a="A man.", ctx_b="the Man", endings=("café", "b", "c", "d"))
    assert text(build_request(activitynet, HARNESS, BYTES).context) == "Go: A man. The man"
    assert text(build_request(activitynet, TOKEN_MEAN, BYTES).context) == "A man. the Man"
    assert build_request(activitynet, HARNESS, BYTES).characters[0] == 4  # not bytes
    assert text(build_request(item(ctx_b=""), HARNESS, BYTES).context) == "Go: A man."


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("a [title] b", "a. b"),
        (" a ", "a"),
        ("[header] a", " a"),  # stripped before the bracket is removed
        ("a [x] b [y] c", "a b c"),
        ("a [x", "a [x"),
        ("a [x] [y] b", "a  b"),  # three spaces become two: replaced once, from the left
        ("", ""),
    ],
)
def test_preprocess(raw: str, clean: str) -> None:
    assert preprocess(raw) == clean


def test_trailing_spaces_of_the_context_move_to_the_continuation() -> None:
    context, continuation = encode_pair("Go:  ", " on", BYTES)
    assert (text(context), text(continuation)) == ("Go:", "   on")


# Scores and answers.


@torch.no_grad()
def ending_nats(model: GPT, context: list[int], ending: list[int]) -> float:
    """The definition: each of the ending's tokens, given at most block_size tokens in all before the last."""
    tokens = (context + ending)[-(model.config.block_size + 1) :]
    logits = model.logits(model.hidden(torch.tensor([tokens[:-1]])))[0].double()
    nats = F.cross_entropy(logits, torch.tensor(tokens[1:]), reduction="none")
    return float(nats[-len(ending) :].sum())


@pytest.mark.parametrize("block_size", [64, 12, 5])
def test_scores_match_the_definition_for_truncated_contexts_too(block_size: int) -> None:
    model = tiny_model(block_size=block_size).eval()
    requests = build_requests(many_items(6), BYTES)
    nats = score_requests(model, requests, batch_size=4, dtype=torch.float32, group=ALONE)
    expected = [[ending_nats(model, request.context, ending) for ending in request.endings] for request in requests]
    assert nats == pytest.approx(np.array(expected), rel=1e-5)


@pytest.mark.parametrize("name", OPTIONS)
def test_answers_match_one_item_at_a_time(name: str) -> None:
    model = tiny_model(**(OPTIONS[name] | {"block_size": 64, "vocab_size": 320})).eval()
    items = many_items(12)
    result = score(model, items)
    assert same_answers(score_one_at_a_time(model, BYTES, items, torch.float32, torch.device("cpu")), result)
    assert result.truncated == 0


def test_batch_size_does_not_change_the_answers() -> None:
    model, items = tiny_model(block_size=64), many_items(15)
    expected = score(model, items)
    assert all(same_answers(score(model, items, batch_size), expected) for batch_size in (1, 2, 5, 100))


@pytest.mark.parametrize(("device", "length", "rows"), [("cpu", 16, 8), ("cuda", 16, 32), ("cuda", 100, 8)])
def test_a_gpu_computes_as_many_short_rows_as_have_the_tokens_of_a_batch(device: str, length: int, rows: int) -> None:
    assert rows_at_once(8, 64, length, torch.device(device)) == rows


def test_batches_of_many_rows_give_the_same_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    model, items = tiny_model(block_size=64), many_items(15)
    expected = score(model, items)
    monkeypatch.setattr(hellaswag, "rows_at_once", lambda batch_size, block_size, length, _: 200 // length)
    assert same_answers(score(model, items), expected)


def _same_on_each_rank(group: Group, count: int, expected: HellaswagResult) -> None:
    progress = Progress("items", total=8 * count, unit="endings")
    items = many_items(count)
    requests = build_requests(items, BYTES)
    result = answer(
        tiny_model(block_size=64), requests, batch_size=4, dtype=torch.float32, group=group, progress=progress
    )
    assert not group.is_main or progress.done == progress.total
    assert (result.items, result.truncated) == (expected.items, expected.truncated)
    assert same_answers(result, expected)


@pytest.mark.parametrize("count", [13, 1])  # 13 items: not divisible by the ranks; 1: a rank has no work
def test_two_ranks_answer_as_one(count: int) -> None:
    expected = score(tiny_model(block_size=64), many_items(count), batch_size=4)
    on_ranks(2, _same_on_each_rank, count, expected)


def test_truncated_items_are_counted() -> None:
    fits = item(ctx_a="A.", ctx_b="", endings=("b", "c", "d", "e"))
    long = item(ctx_a="A man in a hat.", endings=("walks a very long way home.", "b", "c", "d"))
    result = score(tiny_model(block_size=16), [fits, long, fits])
    assert (result.items, result.truncated) == (3, 1)


def test_a_trained_model_finds_the_endings_it_has_seen() -> None:
    endings = ["goes.", "rests.", "waits."]
    items = [item(endings=(*endings[:n], "sings.", *endings[n:]), label=n) for n in range(4)]
    requests = [(build_request(one, protocol, BYTES), one.label) for one in items for protocol in PROTOCOLS]
    texts = [torch.tensor(request.context + request.endings[label]) for request, label in requests]
    idx = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=-1)
    torch.manual_seed(1)
    model = GPT(tiny_model(block_size=64).config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        loss = model(idx[:, :-1].clamp(min=0), idx[:, 1:])
        assert loss is not None
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    result = score(model, items)
    assert [result.accuracy(metric) for metric in METRICS] == [1.0, 1.0, 1.0]
    wrong = score(model, [one.model_copy(update={"label": (one.label + 1) % 4}) for one in items])
    assert [wrong.accuracy(metric) for metric in METRICS] == [0.0, 0.0, 0.0]


def test_the_first_of_equal_endings_wins() -> None:
    equal = item(label=1).model_copy(update={"endings": ("sits.",) * 4})  # refused in a file
    result = score(tiny_model(block_size=64), [equal])
    assert [result.answers[metric].tolist() for metric in METRICS] == [[0], [0], [0]]


def test_an_ending_without_characters_cannot_win_acc_norm() -> None:
    brackets = item(endings=("[step]", "[title]", "zzzzzzzzzzzz", "[x]"), label=2)  # empty under the harness's rules
    assert build_request(brackets, HARNESS, BYTES).characters == [0, 0, 12, 0]
    assert score(tiny_model(block_size=64), [brackets]).answers["acc_norm"].tolist() == [2]


def test_an_ending_without_tokens_has_no_loss_and_wins_only_if_all_are_empty() -> None:
    """As where a tokenizer joins the whole ending to the context's last token."""
    endings: list[list[list[int]]] = [[[], [3, 4], [], [5]], [[], [], [], []]]
    nats = score_requests(
        tiny_model(block_size=64),
        [Request([1, 2], four, HARNESS, [3, 2, 1, 1], label=0) for four in endings],
        batch_size=4,
        dtype=torch.float32,
        group=ALONE,
    )
    assert (nats > 0).tolist() == [[False, True, False, True], [False] * 4]
    requests = [Request([1, 2], four, protocol, [3, 2, 1, 1], label=0) for protocol in PROTOCOLS for four in endings]
    for first, second in answers_of(np.concatenate([nats, nats]), requests).values():
        assert first in (1, 3)
        assert second == 0


def test_normalization_by_characters_and_by_tokens() -> None:
    """A uniform model: every token costs ln(257), so the shortest wins in sum, and all are equal per token."""
    model = tiny_model(block_size=64, tie_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    result = score(model, [item(endings=("goes home.", "sits.", "ééééé", "stands up now."))])
    assert result.answers["acc"].tolist() == [1]  # 6 bytes with the space; the é's take 11
    # Per character: (n + 1) / n falls with the length n where a character is a byte.
    assert result.answers["acc_norm"].tolist() == [3]
    assert result.answers["acc_norm_token"].tolist() == [0]


def test_accuracy_and_its_standard_error() -> None:
    labels = np.zeros(10_042, np.int64)
    answers = (np.arange(10_042) % 10 >= 3).astype(np.int64)
    result = HellaswagResult(labels, {"acc": answers}, 0)
    assert result.accuracy("acc") == pytest.approx(0.3, abs=1e-3)
    assert result.stderr("acc") == pytest.approx((answers == labels).std(ddof=1) / math.sqrt(10_042))


def test_a_subset_is_fixed_in_order_and_part_of_every_larger_one() -> None:
    items = [item(ctx_a=str(number)) for number in range(50)]
    small, large = subset(items, 10), subset(items, 30)
    assert subset(items, 10) == small
    assert [one for one in large if one in small] == small
    assert sorted(small, key=items.index) == small
    assert small != items[:10]
    assert subset(items, None) == subset(items, 1000) == items


def test_scoring_leaves_the_model_and_the_random_state_alone() -> None:
    model = tiny_model(block_size=64, dropout=0.5).train()
    state = torch.get_rng_state()
    first = score(model, many_items(5))
    assert same_answers(first, score(model, many_items(5)))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())


# Rescoring in float32.


def untrained(name: str) -> GPT:
    """A model that finds all tokens about equally likely, so that many answers are uncertain."""
    torch.manual_seed(7)
    return GPT(tiny_model(**(OPTIONS[name] | {"block_size": 64, "vocab_size": 320})).config)


@pytest.mark.parametrize("name", ["gpt2", "llama", "untied"])
def test_bfloat16_gives_the_answers_of_float32(name: str) -> None:
    items = many_items(60)
    for model in (tiny_model(**(OPTIONS[name] | {"block_size": 64, "vocab_size": 320})), untrained(name)):
        assert same_answers(score(model, items), score(model, items, dtype=torch.bfloat16))


def test_bfloat16_without_rescoring_changes_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hellaswag, "BFLOAT16_ERROR", 0.0)
    model, items = untrained("gpt2"), many_items(120)
    for block in model.transformer.h:
        block.attn.attend = sdpa
    assert not same_answers(score(model, items), score(model, items, dtype=torch.bfloat16))


def four_endings(endings: list[list[int]], protocol: str, number: int = 0) -> Request:
    return Request([number], endings, protocol, [len(ending) for ending in endings], label=0)


def test_a_large_error_makes_more_answers_uncertain() -> None:
    requests = [
        four_endings([[1], [2], [3], [4]], protocol, 3 * place + number)
        for place, protocol in enumerate(PROTOCOLS)
        for number in range(3)
    ]
    nats = np.array([[20.0, 20.0 + gap, 90.0, 90.0] for gap in (0.9, 3.0, 9.0) * 2])
    exact = nats - [0.0, 1.0, 0.0, 0.0]  # every second ending is off by 1 nat, twice BFLOAT16_ERROR
    rescored: list[list[int]] = []

    def in_float32(uncertain: list[Request]) -> Scores:
        rescored.append([request.context[0] for request in uncertain])
        return exact[rescored[-1]]

    hellaswag._rescore(nats, requests, in_float32)  # type: ignore[arg-type]
    assert rescored == [[0, 3], [1, 4]]
    assert nats[:, 1].tolist() == [exact[0, 1], exact[1, 1], 29.0] * 2


def test_an_ending_that_cannot_win_hides_no_uncertain_answer() -> None:
    requests = [four_endings([[], [2], [3], [4]], HARNESS), four_endings([[1], [2], [3], [4]], TOKEN_MEAN)]
    nats = np.array([[0.0, 20.0, 20.1, 90.0]] * 2)
    assert hellaswag._uncertain(nats, requests, error=0.5).tolist() == [True, False]


# Against lm-evaluation-harness itself.

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
@pytest.mark.parametrize("block_size", [128, 24])  # 24: nearly every item is truncated
def test_answers_match_lm_eval(tmp_path: Path, block_size: int) -> None:
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (docs/evaluation.md says how)")
    from benchmarks.harness import harness_is_right

    items = [*many_items(24), *BRACKETED]
    if block_size < 128:  # the harness accepts no ending that is longer than the context
        items = [one for one in items if max(len(ending.encode()) for ending in one.endings) < 20]
    assert len(items) >= 15
    model = tiny_model(block_size=block_size)
    save_tokenizer(BYTES, tmp_path / "tokenizer")
    export_model(model, tmp_path / "tokenizer", tmp_path / "exported")
    result = answer(model, build_requests(items, BYTES), batch_size=8, dtype=torch.float32, group=ALONE)
    for metric, correct in harness_is_right(tmp_path / "exported", items).items():
        ours: npt.NDArray[np.int64] = (result.answers[metric] == result.labels).astype(int)
        assert np.array_equal(ours, correct), metric
        assert 0 < ours.mean() < 1  # neither all right nor all wrong
