"""Items as the two protocols ask them, worked by hand after lm-evaluation-harness 0.4.13 and build-nanogpt."""

import pytest

from pipeline.corpus.hellaswag_items import Item
from pipeline.evaluation.protocols import HARNESS, TOKEN_MEAN, ask, encode_pair, without_brackets
from tests.evaluation.small import BYTES, item

WIKIHOW = Item(
    ind=24,
    activity_label="Home and Garden",
    ctx_a="[header] How to bake bread [title] Mix it. [step] Take flour.",
    ctx_b="[step] THEN water",
    ctx="[header] How to bake bread [title] Mix it. [step] Take flour. [step] THEN water",
    endings=("[step] is poured [substeps] slowly.", "burns.", " boils. ", "[title] Wait."),
    label=0,
)


def text(tokens: list[int]) -> str:
    return BYTES.decode(tokens)


def test_the_harness_puts_the_label_first_capitalises_ctx_b_and_removes_brackets() -> None:
    question = ask(WIKIHOW, HARNESS, BYTES)
    # "[header]" leaves two spaces behind it, which become one; so does each "[step]". "[step] THEN water" begins with
    # a bracket, so capitalize() finds no letter to raise and lowers the rest.
    assert text(question.context) == "Home and Garden: How to bake bread. Mix it. Take flour. then water"
    # An ending is stripped before its brackets go, not after: the first keeps the space that follows "[step]".
    assert [text(ending) for ending in question.endings] == ["  is poured slowly.", " burns.", " boils.", "  Wait."]
    # acc_norm counts the characters without the space that joins the ending to its context.
    assert question.characters == [len(" is poured slowly."), len("burns."), len("boils."), len(" Wait.")]


def test_the_token_mean_protocol_takes_the_text_as_it_is() -> None:
    question = ask(WIKIHOW, TOKEN_MEAN, BYTES)
    assert text(question.context) == WIKIHOW.ctx
    assert [text(ending) for ending in question.endings] == [f" {ending}" for ending in WIKIHOW.endings]


def test_activitynet_items_differ_in_label_and_capital_alone() -> None:
    one = item(ctx_a="A man.", ctx_b="the Man", endings=("sits.", "b", "c", "d"))
    assert text(ask(one, HARNESS, BYTES).context) == "Go: A man. The man"
    assert text(ask(one, TOKEN_MEAN, BYTES).context) == "A man. the Man"


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("a [title] b", "a.  b".replace("  ", " ")),
        (" a ", "a"),
        ("[header] a", " a"),  # stripped before the bracket is removed: the space behind it stays
        ("a [x] b [y] c", "a b c"),
        ("a [x", "a [x"),
        ("a [x] [y] b", "a  b"),  # three spaces in a row become two: replaced once, from the left
        ("", ""),
    ],
)
def test_brackets_are_removed_as_the_harness_does(raw: str, clean: str) -> None:
    assert without_brackets(raw) == clean


def test_characters_count_letters_and_not_bytes() -> None:
    assert ask(item(endings=("café", "b", "c", "d")), HARNESS, BYTES).characters[0] == 4


def test_an_empty_ctx_b_leaves_no_space_at_the_end() -> None:
    assert text(ask(item(ctx_b=""), HARNESS, BYTES).context) == "Go: A man."


def test_spaces_at_the_end_of_a_context_go_over_to_the_continuation() -> None:
    context, continuation = encode_pair("Go:  ", " on", BYTES)
    assert (text(context), text(continuation)) == ("Go:", "   on")
