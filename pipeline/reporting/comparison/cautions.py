"""What the reader must know before comparing numbers: what else differs, and which runs have none."""

from collections.abc import Sequence

from pipeline.reporting import markdown as md
from pipeline.reporting.comparison.experiments import Experiment
from pipeline.reporting.comparison.groups import Configuration, Measure, differing_keys, tokens_differ

SCORED = "evaluate.stride"
QUESTIONS = ("hellaswag.", "evaluate.hellaswag_items")


def cautions(experiments: Sequence[Experiment], groups: Sequence[Configuration], measure: Measure) -> list[str]:
    """Sentences, each a paragraph."""
    done = [one for one in experiments if one.state == "done"]
    told = [*_measured_differently(done), *_without_result(groups, measure)]
    if (bases := len({one.base for one in done})) > 1:
        told.append(f"The runs start from {bases} commits: the code may differ as well as the settings.")
    for one in experiments:
        if one.state == "failed":
            told.append(f"{md.code(one.name)} failed: `dvc queue logs {one.name}` says why, where it was queued.")
        if one.state == "unreadable":
            told.append(f"{md.code(one.name)} left a file that cannot be read, {md.text(one.problem)}.")
    return told


def incomparable(experiments: Sequence[Experiment]) -> set[str]:
    """The metrics of which no run can be called the best, by their keys."""
    keys = differing_keys([one for one in experiments if one.state == "done"])
    found: set[str] = set()
    if tokens_differ(experiments):
        found |= {"val.loss"}
    if SCORED in keys:
        found |= {"val.loss", "val.bpb"}
    if any(key.startswith(QUESTIONS) for key in keys):
        found |= {"accuracy.acc_norm"}
    if any(key.startswith("data.") for key in keys):
        found |= {"val.loss", "val.bpb", "accuracy.acc_norm"}
    return found


def _measured_differently(done: Sequence[Experiment]) -> list[str]:
    """What may make a number larger or smaller without the model being worse or better."""
    keys = differing_keys(done)
    told = []
    if tokens_differ(done):
        told.append(
            "The runs cut text into different tokens, so a loss per token means something else in each: "
            "compare bits per byte."
        )
    if data := [key for key in keys if key.startswith("data.")]:
        told.append(
            f"The runs differ in {_named(data)}: they may have been measured on different text, and then not even "
            "bits per byte compare."
        )
    if SCORED in keys:
        told.append(f"The runs were scored differently ({md.code(SCORED)}): their losses do not compare.")
    if questions := [key for key in keys if key.startswith(QUESTIONS)]:
        told.append(f"The runs answered different questions ({_named(questions)}): their accuracies do not compare.")
    if "evaluate.dtype" in keys:
        told.append("The runs were scored in different precision (`evaluate.dtype`): the loss moves in its 4th digit.")
    if "model.block_size" in keys:
        told.append(
            "Tokens of a longer context are scored with more of it (`model.block_size`), so loss does not compare the "
            "models alone."
        )
    return told


def _without_result(groups: Sequence[Configuration], measure: Measure) -> list[str]:
    """The configurations whose mean leaves out a seed that diverged or failed."""
    told = []
    for group in groups:
        if (lost := group.without_result(measure.key)) and group.mean(measure.key) is not None:
            verb, names = "has" if len(lost) == 1 else "have", ", ".join(md.code(one.name) for one in lost)
            told.append(
                f"{md.code(group.label)}: {len(lost)} of {len(group.seeds)} seeds {verb} no result ({names}); "
                "its mean is over the others and may flatter it."
            )
    return told


def _named(keys: Sequence[str]) -> str:
    return md.listing([md.code(key) for key in keys])
