"""What was trained, on what and at what cost: a table of the report."""

from pipeline.reporting import markdown as md
from pipeline.reporting.numbers import DASH, count, duration, energy, exact, missing, percent, power_of_ten, significant
from pipeline.reporting.run import Run
from pipeline.reporting.summary import hardware, passes


def trained(run: Run) -> str:
    """A table in markdown of what is known; rows without a value are left out."""
    train, model = run.train, run.train.params.get("model", {})
    embeddings = train.parameters.without_embeddings
    speed = DASH if missing(train.tokens_per_sec) else f"{exact(train.tokens_per_sec)} tokens/s"
    if not missing(train.mfu):
        speed += f", {percent(train.mfu)} of the hardware's peak (MFU)"
    found = train.hardware
    precision = ", ".join(
        [*([found.dtype] if found.dtype else []), *(["compiled"] if found.compile in (True, "on", "auto") else [])]
    )
    times = duration(train.train_time_s)
    if not missing(train.wall_time_s):
        times += f" of steps, {duration(train.wall_time_s)} with evaluation, samples and checkpoints"
    rows = [
        ["Architecture", _architecture(model)],
        [
            "Parameters",
            exact(train.parameters.total) + (f" ({exact(embeddings)} without embeddings)" * bool(embeddings)),
        ],
        ["Text", _text_read(run)],
        ["Tokens", f"{exact(train.tokens)} in {exact(train.steps)} steps" + _passes(run)],
        ["Optimizer", _optimizer(run)],
        ["Compute", f"{power_of_ten(train.flops)} FLOPs"],
        ["Time", times],
        ["Speed", speed],
        ["Energy", energy(train.energy_j) if train.energy_j else ""],
        ["Hardware", md.text(hardware(found))],
        ["Arithmetic", md.text(precision)],
    ]
    return md.table(["", "This run"], [row for row in rows if row[1]], numbers_from=2)


def _architecture(model: object) -> str:
    known = dict(model) if isinstance(model, dict) else {}
    shape = [
        f"{known[key]} {word}"
        for key, word in (("n_layer", "layers"), ("n_head", "heads"), ("n_embd", "wide"))
        if key in known
    ]
    if "block_size" in known:
        shape.append(f"context {known['block_size']}")
    kinds = [
        f"{md.code(known[key])} {word}" for key, word in (("position", "positions"), ("mlp", "MLP")) if key in known
    ]
    if "norm" in known:
        kinds.append(" ".join(filter(None, [known.get("norm_placement"), md.code(known["norm"])])))
    return "; ".join(", ".join(part) for part in (shape, kinds) if part)


def _text_read(run: Run) -> str:
    if run.shards is None:
        return ""
    parts = []
    for name, words in (("train", "to train"), ("val", "to validate")):
        if split := run.shards.splits.get(name):
            size = f"{count(split.tokens)} tokens"
            parts.append(
                f"{size} in {exact(split.documents)} documents {words}" if split.documents else f"{size} {words}"
            )
    if run.shards.encoding_name:
        parts.append(f"encoding {md.code(run.shards.encoding_name)} of {exact(run.shards.vocab_size)} ids")
    if source := run.setting("data.source"):
        named = run.setting("data.hub_path") if source == "hub" else source
        parts.insert(0, md.code(named))
    return "; ".join(parts)


def _optimizer(run: Run) -> str:
    settings = run.train.params.get("train", {})
    parts = [md.code(settings["optimizer"])] if "optimizer" in settings else []
    if "schedule" in settings and "max_lr" in settings:
        parts.append(f"{settings['schedule']} schedule from {settings['max_lr']:g}")
    if "total_batch_size" in settings:
        parts.append(f"{exact(settings['total_batch_size'])} tokens per step")
    return ", ".join(parts)


def _passes(run: Run) -> str:
    epochs = passes(run)
    return "" if epochs is None else f", {significant(epochs, 3)} passes over the training text"
