"""Benchmarks: questions, scores, answers, and parity with lm-evaluation-harness."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F

from benchmarks.hellaswag import score_one_at_a_time
from pipeline.corpus.benchmarks import TASKS, HellaSwagItem, Item, LambadaItem
from pipeline.corpus.tokenizer import save_tokenizer
from pipeline.distributed import Group
from pipeline.evaluation import benchmarks, scoring
from pipeline.evaluation.benchmarks import (
    Answers,
    BenchmarkResult,
    Question,
    answer,
    answers_of,
    build_questions,
    encode_pair,
    endings,
    preprocess,
)
from pipeline.evaluation.scoring import Request, Scores, rows_at_once, score_requests
from pipeline.huggingface.export import export_model
from pipeline.model.gpt import GPT, sdpa
from pipeline.progress import Progress
from tests.evaluation.small import ALONE, BYTES, item, many_items, tiny_model
from tests.model.configs import OPTIONS
from tests.ranks import on_ranks

METRICS = TASKS["hellaswag"].metrics


def score(
    model: GPT,
    items: Sequence[Item],
    batch_size: int = 8,
    dtype: torch.dtype = torch.float32,
    task: str = "hellaswag",
) -> BenchmarkResult:
    return answer(model, build_questions(task, items, BYTES), batch_size=batch_size, dtype=dtype, group=ALONE)


def same_answers(a: Mapping[str, Answers], b: Mapping[str, Answers]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[metric], b[metric]) for metric in a)


def questions(one: Item, task: str = "hellaswag") -> list[Question]:
    return build_questions(task, [one], BYTES)


def texts(question: Question) -> list[str]:
    return [text(ending) for ending in question.request.endings]


def text(tokens: list[int]) -> str:
    return BYTES.decode(tokens)


def choose(endings: list[list[int]], number: int = 0) -> Question:
    """A question whose context is its number."""
    lengths = [len(ending) for ending in endings]
    return Question(number, Request([[number]], endings), {"acc_norm": lengths, "acc_norm_token": lengths}, label=0)


# Questions, worked by hand after lm-evaluation-harness 0.4.13 and build-nanogpt.

WIKIHOW = HellaSwagItem(
    ind=24,
    activity_label="Home and Garden",
    ctx_a="[header] How to bake bread [title] Mix it. [step] Take flour.",
    ctx_b="[step] THEN water",
    ctx="[header] How to bake bread [title] Mix it. [step] Take flour. [step] THEN water",
    endings=("[step] is poured [substeps] slowly.", "burns.", " boils. ", "[title] Wait."),
    label=0,
)


def test_harness_request() -> None:
    question, _ = questions(WIKIHOW)
    # "[step] THEN water" begins with a bracket, so capitalize() finds no letter to raise and lowers the rest.
    assert text(question.request.contexts[0]) == "Home and Garden: How to bake bread. Mix it. Take flour. then water"
    # An ending is stripped before its brackets are removed: the first keeps the space that follows "[step]".
    assert texts(question) == ["  is poured slowly.", " burns.", " boils.", "  Wait."]
    # acc_norm counts characters without the space that joins the ending to its context.
    assert question.lengths["acc_norm"] == [len(" is poured slowly."), len("burns."), len("boils."), len(" Wait.")]


def test_token_mean_request_has_the_raw_text() -> None:
    _, question = questions(WIKIHOW)
    assert list(question.lengths) == ["acc_norm_token"]
    assert text(question.request.contexts[0]) == WIKIHOW.ctx
    assert texts(question) == [f" {ending}" for ending in WIKIHOW.endings]


def test_activitynet_request() -> None:
    activitynet = item(ctx_a="A man.", ctx_b="the Man", endings=("café", "b", "c", "d"))
    harness, token_mean = questions(activitynet)
    assert text(harness.request.contexts[0]) == "Go: A man. The man"
    assert text(token_mean.request.contexts[0]) == "A man. the Man"
    assert harness.lengths["acc_norm"][0] == 4  # not bytes
    assert text(questions(item(ctx_b=""))[0].request.contexts[0]) == "Go: A man."


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


def only_question(task: str, **fields: object) -> Question:
    (question,) = questions(TASKS[task].schema.model_validate(fields), task)
    return question


def test_lambada_asks_for_the_last_word() -> None:
    question = only_question("lambada", text="He saw the black  cat")
    assert text(question.request.contexts[0]) == "He saw the black"
    assert (texts(question), question.label) == (["  cat"], 0)  # the space that ends the context moves to the word


def test_arc_questions_have_any_number_of_answers() -> None:
    choices = {"text": ["Sun", "the Moon", "Mars"], "label": ["1", "2", "3"]}
    question = only_question("arc_easy", question="What shines?", choices=choices, answerKey="2")
    assert text(question.request.contexts[0]) == "Question: What shines?\nAnswer:"
    assert (texts(question), question.label) == ([" Sun", " the Moon", " Mars"], 1)
    assert question.lengths == {"acc": [1, 1, 1], "acc_norm": [3, 8, 4]}


def test_piqa_question() -> None:
    question = only_question("piqa", goal="Boil water", sol1="Use a pot.", sol2="Use ice.", label=1)
    assert text(question.request.contexts[0]) == "Question: Boil water\nAnswer:"
    assert (texts(question), question.label) == ([" Use a pot.", " Use ice."], 1)


def test_winogrande_asks_for_the_same_ending_after_each_word() -> None:
    question = only_question(
        "winogrande", sentence="Jo fed Bo, so _ was full .", option1="Jo", option2="Bo", answer="2"
    )
    assert [text(context) for context in question.request.contexts] == ["Jo fed Bo, so Jo", "Jo fed Bo, so Bo"]
    assert (texts(question), question.label) == ([" was full ."] * 2, 1)


@torch.no_grad()
def test_accuracy_and_perplexity_of_last_words() -> None:
    model = tiny_model(block_size=64, tie_embeddings=False).eval()
    model.lm_head.weight.zero_()  # all ids equally likely: no word is certain, and each byte costs ln(257)
    items = [LambadaItem(text=passage) for passage in ("a bc", "a d")]
    result = score(model, items, task="lambada").metrics("lambada")
    assert (result.acc, result.chance) == (0, 0)
    nats = np.array([3, 2]) * math.log(257)
    assert result.perplexity == pytest.approx(math.exp(nats.mean()), rel=1e-5)
    assert result.perplexity_stderr == pytest.approx(math.exp(nats.mean()) * nats.std(ddof=1) / math.sqrt(2), rel=1e-5)
    model = tiny_model(block_size=64).eval()
    context = torch.tensor([BYTES.encode_ordinary("The cat")])
    chosen = [int(model.logits(model.hidden(context))[0, -1].argmax())]
    likely = Question(0, Request(context.tolist(), [chosen], margins=True), {"acc": [1]}, label=0)
    other = Question(1, Request(context.tolist(), [[(chosen[0] + 1) % 257]], margins=True), {"acc": [1]}, label=0)
    result = answer(model, [likely, other], batch_size=4, dtype=torch.float32, group=ALONE).metrics("lambada")
    assert result.acc == 0.5


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
    requests = [question.request for question in build_questions("hellaswag", many_items(6), BYTES)]
    requests.append(Request([[1, 2], [3], [4] * 9], [[5], [6, 7], [8]]))  # contexts of their own
    scores = score_requests(model, requests, batch_size=4, dtype=torch.float32, group=ALONE)
    for request, part in zip(requests, scores, strict=True):
        assert part[:, 0] == pytest.approx([ending_nats(model, *pair) for pair in request.pairs()], rel=1e-5)


@pytest.mark.parametrize("name", OPTIONS)
def test_answers_match_one_item_at_a_time(name: str) -> None:
    # not zero: an untied head of zeros makes all endings equally likely
    model = tiny_model(**(OPTIONS[name] | {"block_size": 64, "vocab_size": 320, "init": "normal"})).eval()
    items = many_items(12)
    result = score(model, items)
    one_at_a_time = score_one_at_a_time(model, BYTES, items, torch.float32, torch.device("cpu"))
    assert same_answers(one_at_a_time, result.answers)
    assert result.truncated == 0


def test_batch_size_does_not_change_the_answers() -> None:
    model, items = tiny_model(block_size=64), many_items(15)
    expected = score(model, items).answers
    assert all(same_answers(score(model, items, batch_size).answers, expected) for batch_size in (1, 2, 5, 100))


@pytest.mark.parametrize(("device", "length", "rows"), [("cpu", 16, 8), ("cuda", 16, 32), ("cuda", 100, 8)])
def test_a_gpu_computes_as_many_short_rows_as_have_the_tokens_of_a_batch(device: str, length: int, rows: int) -> None:
    assert rows_at_once(8, 64, length, torch.device(device)) == rows


def test_batches_of_many_rows_give_the_same_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    model, items = tiny_model(block_size=64), many_items(15)
    expected = score(model, items).answers
    monkeypatch.setattr(scoring, "rows_at_once", lambda batch_size, block_size, length, _: 200 // length)
    assert same_answers(score(model, items).answers, expected)


def _same_on_each_rank(group: Group, count: int, expected: BenchmarkResult) -> None:
    asked = build_questions("hellaswag", many_items(count), BYTES)
    progress = Progress("items", total=endings(asked), unit="endings")
    result = answer(tiny_model(block_size=64), asked, batch_size=4, dtype=torch.float32, group=group, progress=progress)
    assert not group.is_main or progress.done == progress.total
    assert (result.items, result.truncated) == (expected.items, expected.truncated)
    assert same_answers(result.answers, expected.answers)


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
    true = [question.request.pairs()[question.label] for question in build_questions("hellaswag", items, BYTES)]
    rows = [torch.tensor(context + ending) for context, ending in true]
    idx = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)
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
    assert questions(brackets)[0].lengths["acc_norm"] == [0, 0, 12, 0]
    assert score(tiny_model(block_size=64), [brackets]).answers["acc_norm"].tolist() == [2]


def test_an_ending_without_tokens_has_no_loss_and_wins_only_if_all_are_empty() -> None:
    """As where a tokenizer joins the whole ending to the context's last token."""
    four_endings: list[list[list[int]]] = [[[], [3, 4], [], [5]], [[], [], [], []]]
    scores = score_requests(
        tiny_model(block_size=64),
        [Request([[1, 2]], four) for four in four_endings],
        batch_size=4,
        dtype=torch.float32,
        group=ALONE,
    )
    assert (np.array(scores)[:, :, 0] > 0).tolist() == [[False, True, False, True], [False] * 4]
    asked = [choose(four, number) for number, four in enumerate(four_endings)]
    for first, second in answers_of(scores, asked).values():
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
    result = BenchmarkResult(labels, {"acc": answers}, 0, 0.25)
    assert result.accuracy("acc") == pytest.approx(0.3, abs=1e-3)
    assert result.stderr("acc") == pytest.approx((answers == labels).std(ddof=1) / math.sqrt(10_042))


def test_scoring_leaves_the_model_and_the_random_state_alone() -> None:
    model = tiny_model(block_size=64, dropout=0.5).train()
    state = torch.get_rng_state()
    first = score(model, many_items(5))
    assert same_answers(first.answers, score(model, many_items(5)).answers)
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
        assert same_answers(score(model, items).answers, score(model, items, dtype=torch.bfloat16).answers)


def test_bfloat16_without_rescoring_changes_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarks, "BFLOAT16_ERROR", 0.0)
    model, items = untrained("gpt2"), many_items(120)
    for block in model.transformer.h:
        block.attn.attend = sdpa
    assert not same_answers(score(model, items).answers, score(model, items, dtype=torch.bfloat16).answers)


def with_margins(nats: Sequence[float]) -> Scores:
    return np.stack([nats, np.zeros(len(nats))], axis=1)


def test_contending_endings_are_rescored_and_a_large_error_makes_more_of_them() -> None:
    asked = [choose([[1], [2], [3], [4]], number) for number in range(3)]
    scores = [with_margins([20.0, 20.0 + gap, 90.0, 90.0]) for gap in (0.9, 3.0, 9.0)]
    exact = [part[:2] - [[0.0, 0.0], [1.0, 0.0]] for part in scores]  # the second is off by twice BFLOAT16_ERROR
    rescored: list[list[int]] = []

    def in_float32(requests: Sequence[Request]) -> list[Scores]:
        assert all(request.endings == [[1], [2]] for request in requests)
        rescored.append([request.contexts[0][0] for request in requests])
        return [exact[number] for number in rescored[-1]]

    benchmarks._rescore(scores, asked, in_float32)
    assert rescored == [[0], [1]]
    assert [part[1, 0] for part in scores] == [exact[0][1, 0], exact[1][1, 0], 29.0]


def test_an_ending_that_cannot_win_hides_no_uncertain_answer() -> None:
    scores, errors = with_margins([0.0, 20.0, 20.1, 90.0]), np.full(4, 0.5)
    assert benchmarks._contenders(scores, choose([[], [2], [3], [4]]), errors) == [1, 2]
    assert benchmarks._contenders(scores, choose([[1], [2], [3], [4]]), errors) == []


def test_a_greedy_answer_is_uncertain_where_another_token_is_about_as_likely() -> None:
    question = Question(0, Request([[1]], [[2]], margins=True), {"acc": [1]}, label=0)
    for margin, contenders in ((0.4, [0]), (-0.4, [0]), (0.6, []), (-0.6, [])):
        assert benchmarks._contenders(np.array([[3.0, margin]]), question, np.array([0.5])) == contenders


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
    from benchmarks.harness import harness_values

    items = [*many_items(24), *BRACKETED]
    if block_size < 128:  # the harness accepts no ending that is longer than the context
        items = [one for one in items if max(len(ending.encode()) for ending in one.endings) < 20]
    assert len(items) >= 15
    model = tiny_model(block_size=block_size)
    save_tokenizer(BYTES, tmp_path / "tokenizer")
    export_model(model, tmp_path / "tokenizer", tmp_path / "exported")
    result = answer(model, build_questions("hellaswag", items, BYTES), batch_size=8, dtype=torch.float32, group=ALONE)
    for metric, correct in harness_values(tmp_path / "exported", "hellaswag", items).items():
        ours: npt.NDArray[np.int64] = (result.answers[metric] == result.labels).astype(int)
        assert np.array_equal(ours, correct), metric
        assert 0 < ours.mean() < 1  # neither all right nor all wrong
