"""HellaSwag: the fast way answers as the simple one, on any number of ranks, and says what it does at the edges."""

import json
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F

from benchmarks.hellaswag import score_one_at_a_time
from pipeline.corpus.hellaswag_items import Item, read_items
from pipeline.distributed import Group
from pipeline.evaluation import hellaswag
from pipeline.evaluation.hellaswag import HellaswagResult, answers_of, score_items, subset
from pipeline.evaluation.protocols import HARNESS, PROTOCOLS, TOKEN_MEAN, Question, ask
from pipeline.evaluation.scoring import batches_of, score_batch, tasks_of
from pipeline.model.gpt import GPT
from pipeline.progress import Progress
from tests.evaluation.small import ALONE, BYTES, item, many_items, tiny_model
from tests.model.configs import OPTIONS
from tests.ranks import on_ranks

METRICS = ("acc", "acc_norm", "acc_norm_token")


def score(model: GPT, items: list[Item], batch_size: int = 8, dtype: torch.dtype = torch.float32) -> HellaswagResult:
    return score_items(model, BYTES, items, batch_size=batch_size, dtype=dtype, group=ALONE)


def same_answers(a: HellaswagResult, b: HellaswagResult) -> bool:
    return all(np.array_equal(a.answers[metric], b.answers[metric]) for metric in METRICS)


@pytest.mark.parametrize("name", OPTIONS)
def test_shared_contexts_answer_as_one_item_at_a_time(name: str) -> None:
    model = tiny_model(**(OPTIONS[name] | {"block_size": 64, "vocab_size": 320})).eval()
    items = many_items(12)
    slow = score_one_at_a_time(model, BYTES, items, torch.float32, torch.device("cpu"))
    fast = score(model, items)
    assert fast.truncated == 0
    assert same_answers(slow, fast)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_batch_size_does_not_change_the_answers(batch_size: int) -> None:
    model = tiny_model(block_size=64)
    assert same_answers(score(model, many_items(15)), score(model, many_items(15), batch_size))


@torch.no_grad()
def nats_alone(model: GPT, context: list[int], ending: list[int]) -> float:
    """The definition: the sum over the ending's tokens, each given the newest block_size tokens before the last."""
    text = (context + ending)[-(model.config.block_size + 1) :]
    logits = model.logits(model.hidden(torch.tensor([text[:-1]])))[0].double()
    nats = F.cross_entropy(logits, torch.tensor(text[1:]), reduction="none")
    return float(nats[-len(ending) :].sum())


@pytest.mark.parametrize("block_size", [64, 12, 5])
def test_scores_are_those_of_each_ending_alone_where_the_context_is_cut_too(block_size: int) -> None:
    model = tiny_model(block_size=block_size).eval()
    questions = [ask(one, protocol, BYTES) for protocol in PROTOCOLS for one in many_items(6)]
    tasks = [
        task
        for number, question in enumerate(questions)
        for task in tasks_of(question.context, question.endings, 4 * number, block_size)
    ]
    found = {
        row: nats for batch in batches_of(tasks, 4) for row, nats in score_batch(model, batch, 4, torch.device("cpu"))
    }
    assert sorted(found) == list(range(4 * len(questions)))
    for number, question in enumerate(questions):
        for place, ending in enumerate(question.endings):
            assert found[4 * number + place] == pytest.approx(nats_alone(model, question.context, ending), rel=1e-5)


def test_items_that_do_not_fit_the_context_are_counted() -> None:
    fits = item(ctx_a="A.", ctx_b="", endings=("b", "c", "d", "e"))
    long = item(ctx_a="A man in a hat.", endings=("walks a very long way home.", "b", "c", "d"))
    result = score(tiny_model(block_size=16), [fits, long, fits])
    assert (result.items, result.truncated) == (3, 1)
    assert result.metrics("hellaswag")["hellaswag/truncated"] == 1


def test_a_model_that_learnt_the_true_endings_finds_them() -> None:
    endings = ["goes.", "rests.", "waits."]
    items = [item(endings=(*endings[:n], "sings.", *endings[n:]), label=n) for n in range(4)]
    texts = [
        torch.tensor(ask(one, protocol, BYTES).context + ask(one, protocol, BYTES).endings[one.label])
        for one in items
        for protocol in PROTOCOLS
    ]
    idx = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=-1)
    torch.manual_seed(1)
    model = GPT(tiny_model(block_size=64).config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        _, loss = model(idx[:, :-1].clamp(min=0), idx[:, 1:])
        assert loss is not None
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    result = score(model, items)
    assert [result.accuracy(metric) for metric in METRICS] == [1.0, 1.0, 1.0]
    wrong = score(model, [Item(**{**one.__dict__, "label": (one.label + 1) % 4}) for one in items])
    assert [wrong.accuracy(metric) for metric in METRICS] == [0.0, 0.0, 0.0]


def test_of_equal_endings_the_first_is_chosen() -> None:
    same = item(endings=("sits.",) * 4, label=1)
    result = score(tiny_model(block_size=64), [same])
    assert {metric: int(answer[0]) for metric, answer in result.answers.items()} == dict.fromkeys(METRICS, 0)


def test_an_ending_without_characters_cannot_win_by_characters() -> None:
    # A reader of files refuses empty endings; brackets alone become empty under the harness's rules.
    result = score(tiny_model(block_size=64), [item(endings=("[step]", "[title]", "zzzzzzzzzzzz", "[x]"), label=2)])
    assert int(result.answers["acc_norm"][0]) == 2
    assert len(ask(item(endings=("[step]", "b", "c", "d")), HARNESS, BYTES).endings[0]) == 1  # the space alone
    assert len(ask(item(endings=("", "b", "c", "d")), TOKEN_MEAN, BYTES).endings[0]) == 1


def test_an_ending_without_tokens_has_no_loss_and_wins_only_where_all_are_so() -> None:
    """As where an encoding joins all of an ending to its context's last token."""
    model = tiny_model(block_size=64)
    (task,) = tasks_of([1, 2], [[], [3, 4], [], [5]], 0, 64)
    found = dict(score_batch(model, [task], 4, torch.device("cpu")))
    assert sorted(found) == [1, 3]
    nats = np.array([[found.get(row, 0.0) for row in range(4)], [0.0] * 4])
    asked = [Question(task.context, task.endings, [3, 2, 1, 1]), Question([1], [[]] * 4, [2] * 4)]
    answers = answers_of(dict.fromkeys(PROTOCOLS, nats), dict.fromkeys(PROTOCOLS, asked))
    assert set(answers) == set(METRICS)
    assert all(int(chosen[0]) in (1, 3) and int(chosen[1]) == 0 for chosen in answers.values())


def test_the_normalisations_are_by_characters_and_by_tokens() -> None:
    """A uniform model: every token costs ln(257), so the shortest wins in sum, and all are equal per token."""
    model = tiny_model(block_size=64, tie_head=False)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    result = score(model, [item(endings=("goes home.", "sits.", "ééééé", "stands up now."))])
    assert int(result.answers["acc"][0]) == 1  # 6 bytes with the space; the é's take 11
    # Per character: (n + 1) / n falls with the length n where a character is a byte.
    assert int(result.answers["acc_norm"][0]) == 3
    assert int(result.answers["acc_norm_token"][0]) == 0


def test_the_standard_error_is_that_of_a_mean() -> None:
    labels = np.zeros(10_042, np.int64)
    answers = (np.arange(10_042) % 10 >= 3).astype(np.int64)
    result = HellaswagResult(labels, {"acc": answers}, 0)
    assert result.accuracy("acc") == pytest.approx(0.3, abs=1e-3)
    assert result.stderr("acc") == pytest.approx(0.0046, abs=5e-5)
    assert result.stderr("acc") == pytest.approx((answers == labels).std(ddof=1) / math.sqrt(10_042))


def test_a_subset_is_fixed_in_order_and_part_of_every_larger_one() -> None:
    items = [item(ctx_a=str(number)) for number in range(50)]
    small, large = subset(items, 10), subset(items, 30)
    assert subset(items, 10) == small
    assert [one for one in large if one in small] == small
    assert sorted(small, key=items.index) == small
    assert small != items[:10]
    assert subset(items, None) == subset(items, 1000) == items


def test_the_model_and_the_random_state_are_left_alone() -> None:
    model = tiny_model(block_size=64, dropout=0.5).train()
    state = torch.get_rng_state()
    first = score(model, many_items(5))
    assert same_answers(first, score(model, many_items(5)))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())


def untrained(name: str) -> GPT:
    """A model that finds all tokens about equally likely, so that many calls are close."""
    torch.manual_seed(7)
    return GPT(tiny_model(**(OPTIONS[name] | {"block_size": 64, "vocab_size": 320})).config)


@pytest.mark.parametrize("name", ["gpt2", "llama", "untied"])
def test_bfloat16_gives_the_answers_of_float32(name: str) -> None:
    items = many_items(60)
    for model in (tiny_model(**(OPTIONS[name] | {"block_size": 64, "vocab_size": 320})), untrained(name)):
        assert same_answers(score(model, items), score(model, items, dtype=torch.bfloat16))


def test_bfloat16_alone_would_have_changed_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the test above has close calls to decide."""
    monkeypatch.setattr(hellaswag, "ROUNDING", 0.0)
    model, items = untrained("gpt2"), many_items(120)
    assert not same_answers(score(model, items), score(model, items, dtype=torch.bfloat16))


def four(endings: list[list[int]], number: int = 0) -> Question:
    return Question([number], endings, [len(ending) for ending in endings])


def test_an_error_larger_than_was_thought_possible_makes_more_calls_close() -> None:
    gaps = [0.9, 3.0, 9.0] * 2  # of three questions under both protocols
    questions = [four([[1], [2], [3], [4]], number) for number in range(6)]
    nats = np.array([[20.0, 20.0 + gap, 90.0, 90.0] for gap in gaps])
    exact = nats - [0.0, 1.0, 0.0, 0.0]  # every second ending is off by 1 nat, twice what was thought possible
    asked: list[list[int]] = []

    def in_float32(again: list[Question]) -> npt.NDArray[np.float64]:
        asked.append([question.context[0] for question in again])
        return exact[asked[-1]]

    hellaswag._ask_close_calls_again(nats, {HARNESS: questions[:3], TOKEN_MEAN: questions[3:]}, in_float32)
    assert asked == [[0, 3], [1, 4]]
    assert nats[:, 1].tolist() == [exact[0, 1], exact[1, 1], 29.0] * 2


def test_an_ending_that_cannot_win_hides_no_close_call() -> None:
    asked = {HARNESS: [four([[], [2], [3], [4]])], TOKEN_MEAN: [four([[1], [2], [3], [4]])]}
    nats = {HARNESS: np.array([[0.0, 20.0, 20.1, 90.0]]), TOKEN_MEAN: np.array([[0.0, 20.0, 20.1, 90.0]])}
    assert hellaswag._close_calls(nats, asked, error=0.5).tolist() == [True, False]


def test_a_malformed_item_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    good = item().__dict__ | {"endings": list(item().endings)}
    path.write_text("\n".join(json.dumps(one) for one in (good, good, good | {"label": 4})))
    with pytest.raises(ValueError, match=r"items.jsonl:3: label \(4\) must be 0 to 3"):
        read_items(path)


def _same_as_alone(group: Group, count: int, expected: HellaswagResult) -> None:
    progress = Progress("items", total=8 * count, unit="endings")
    result = score_items(
        tiny_model(block_size=64),
        BYTES,
        many_items(count),
        batch_size=4,
        dtype=torch.float32,
        group=group,
        progress=progress,
    )
    assert not group.is_main or progress.done == progress.total
    assert (result.items, result.truncated) == (expected.items, expected.truncated)
    assert same_answers(result, expected)


@pytest.mark.parametrize("count", [13, 1])  # 13 items: no number of ranks divides it; 1: a rank has nothing to do
def test_two_ranks_answer_as_one(count: int) -> None:
    expected = score(tiny_model(block_size=64), many_items(count), batch_size=4)
    on_ranks(2, _same_as_alone, count, expected)
