"""The comparison as markdown: what differs, what came of it, and whether it means anything."""

import math
from collections.abc import Mapping, Sequence

from pipeline.reporting import markdown as md
from pipeline.reporting.comparison import scaling
from pipeline.reporting.comparison.cautions import cautions
from pipeline.reporting.comparison.effects import effects
from pipeline.reporting.comparison.experiments import Experiment
from pipeline.reporting.comparison.figures import MOST_CONFIGURATIONS
from pipeline.reporting.comparison.groups import Configuration, Measure, configurations, measure_of
from pipeline.reporting.comparison.samples import same_prompts, same_text
from pipeline.reporting.comparison.tables import commands, configurations_table, runs_table
from pipeline.reporting.comparison.verdicts import verdicts
from pipeline.reporting.numbers import exact, fixed
from pipeline.reporting.run import Hardware

NONE = """\
No experiment has been run since the last commit, so there is nothing to compare. Queue some that differ in one thing,
and run them:

```sh
dvc exp run --queue -S 'model.position=learned,rope' -S 'train.seed=1,2,3'
dvc queue start
python -m pipeline.reporting.compare
```

Experiments of earlier commits: `python -m pipeline.reporting.compare --all-commits`."""


def ranked(experiments: Sequence[Experiment], measure: Measure) -> list[Experiment]:
    """The best first; those without a result last, in the order of their coming."""
    values = {id(one): one.measured(measure.key) for one in experiments}
    return sorted(experiments, key=lambda one: math.inf if (value := values[id(one)]) is None else value)


def ranked_configurations(experiments: Sequence[Experiment], measure: Measure) -> list[Configuration]:
    """The configurations of the finished experiments, the best mean first."""
    groups = configurations(experiments)
    return sorted(groups, key=lambda group: found.value if (found := group.mean(measure.key)) else math.inf)


def page(
    experiments: Sequence[Experiment], title: str, shown: Mapping[str, str], kept: bool = False, times: bool = True
) -> str:
    """The whole comparison, GitHub-flavoured markdown that ends with a newline.

    `shown`: how each figure, by its name, stands in the page. `kept`: it is for others too, who have not these
    experiments. `times`: with what says how fast the runs were.
    """
    heading = f"# {md.text(title)}"
    if not any(not one.committed for one in experiments):
        return f"{heading}\n\n{NONE}\n"
    measure = measure_of(experiments)
    rows = ranked(experiments, measure)
    groups = ranked_configurations(experiments, measure)
    repeated = any(len(group.seeds) > 1 for group in groups)
    parts = [heading, _opening(rows, groups, measure), _provenance(rows), *cautions(experiments, groups, measure)]
    parts += ["## Runs", runs_table(rows, kept, times)]
    if repeated:
        parts += ["## Configurations", configurations_table(groups, measure)]
    parts += effects(groups, measure)
    if told := verdicts(groups, measure):
        parts += ["## Is the difference larger than the noise?", *told]
    parts += _pictures(shown, groups, measure)
    parts += [*same_prompts(rows, groups), *same_text(rows, groups)]
    parts += ["## Run one of them again" if kept else "## Take one of them", commands(rows, kept)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _opening(rows: Sequence[Experiment], groups: Sequence[Configuration], measure: Measure) -> str:
    done = [one for one in rows if one.state == "done"]
    states = [
        f"{len(found)} {state}"
        for state in ("failed", "unreadable", "running", "queued")
        if (found := [one for one in rows if one.state == state])
    ]
    text = f"{len(done)} finished run{'s' * (len(done) != 1)}"
    if len(groups) > 1:
        text += f" of {len(groups)} configurations"
    text += f" ({md.listing(states)} besides)." if states else "."
    if len(done) == 1:
        return f"{text} There is nothing to hold it against yet."
    if not done or (best := done[0].measured(measure.key)) is None:
        return f"{text} None has a {measure.name}."
    text += f" The lowest {measure.name} of one run is {fixed(best, 4)}, of {md.code(done[0].name)}."
    repeated = [(group, mean) for group in groups if (mean := group.mean(measure.key)) and mean.n > 1]
    if repeated and len(groups) > 1:
        group, mean = repeated[0]
        over = f"{fixed(mean.value, 4)} ± {fixed(mean.error, 4)}, of {md.code(group.label)}"
        text += f" The lowest mean over seeds is {over}."
    return text


def _provenance(rows: Sequence[Experiment]) -> str:
    """The commit, the days and the machines of the finished runs."""
    done = [one for one in rows if one.state == "done"]
    commits = dict.fromkeys(md.code(one.base[:10]) for one in done)
    days = sorted({one.date[:10] for one in done if one.date})
    machines = dict.fromkeys(text for one in done if (text := _machine(one.train.hardware)))
    said = [f"commit{'s' * (len(commits) > 1)} {md.listing(list(commits))}"] if commits else []
    said += [" to ".join(dict.fromkeys((days[0], days[-1])))] if days else []
    said += ["; ".join(machines)] if machines else []
    return f"Run from {', '.join(said)}." if said else ""


def _machine(found: Hardware) -> str:
    """`2 x NVIDIA H100, bfloat16, torch 2.13.0`."""
    if not found.device_name:
        return ""
    times = f"{found.world_size} × " if found.world_size and found.world_size > 1 else ""
    parts = [times + md.text(found.device_name)]
    parts += [f"{found.cores} cores"] if found.device == "cpu" and found.cores else []
    parts += [md.text(found.dtype)] if found.dtype else []
    parts += [f"torch {md.text(found.torch)}"] if found.torch else []
    return ", ".join(parts)


def _pictures(shown: Mapping[str, str], groups: Sequence[Configuration], measure: Measure) -> list[str]:
    parts = []
    if curves := [shown[name] for name in ("validation", "training") if name in shown]:
        parts += ["## Curves", " ".join(_about_curves(groups)), *curves]
    if "compute" in shown:
        parts += ["## Loss against compute", shown["compute"], scaling.told(groups, measure)]
    return parts


def _about_curves(groups: Sequence[Configuration]) -> list[str]:
    """What the lines are, and what of the validation split they are over."""
    told = []
    if any(len(group.experiments) > 1 for group in groups):
        told.append("A bold line is the mean of a configuration, the thin ones are its runs.")
    if len(groups) > MOST_CONFIGURATIONS:
        told.append(f"The {MOST_CONFIGURATIONS} best of {len(groups)} configurations are drawn.")
    parts = {
        part
        for group in groups
        for one in group.experiments
        if isinstance(part := one.params.get("train.eval_tokens"), int) and _is_a_part(part, one)
    }
    if parts:
        first = f"the first {exact(parts.pop())} tokens" if len(parts) == 1 else "a part"
        told.append(
            f"Validation curves show {first} of the split, which is what is measured during training; "
            "the tables show the whole split."
        )
    return told


def _is_a_part(tokens: int, one: Experiment) -> bool:
    whole = one.metrics.val.tokens if one.metrics.val else None
    return whole is None or tokens < whole
