"""The run in three sentences: what was trained, how well it predicts and chooses. Only what the numbers say."""

from pipeline.reporting.numbers import count, duration, exact, fixed, missing, percent, significant
from pipeline.reporting.references import CHANCE
from pipeline.reporting.run import Accuracy, Hardware, Run

FAR_FROM_CHANCE = 2.0
"""Standard errors from which on a difference is called one; about one time in twenty, chance does as much."""

NEXT_LINES = "Next lines"
"""The items cut from documents, in short."""


def summary(run: Run) -> str:
    """Three sentences of plain text, each true of any run: what is not known is said or left out."""
    return " ".join((_trained(run), _predicts(run), _chooses(run.metrics.accuracy if run.metrics else None)))


def hardware(found: Hardware) -> str:
    """Where a run was computed: `2 cores (Intel Xeon)`, `8 × NVIDIA H100`."""
    name = found.device_name or ""
    if found.device is None and not name:
        return "unknown hardware"
    if found.device is None or found.device.startswith("cuda"):
        name = name or "GPU"
        return f"{found.world_size} × {name}" if (found.world_size or 1) > 1 else f"one {name}"
    if found.cores is None:
        return name or f"a {found.device.upper()}"
    cores = "one core" if found.cores == 1 else f"{found.cores} cores"
    return f"{cores} ({name})" if name and name.lower() != found.device.lower() else f"{cores} of a CPU"


def passes(run: Run) -> float | None:
    """How often the training text was read; None where its length is not known."""
    split = run.shards.splits.get("train") if run.shards else None
    if split is None or not split.tokens or run.train.tokens is None:
        return None
    return run.train.tokens / split.tokens


def from_chance(share: float, error: float | None) -> str:
    """How an accuracy stands to chance, in words."""
    chance = f"chance ({percent(CHANCE, 0)})"
    if missing(error) or not error:
        return f"beside {chance}"
    distance = (share - CHANCE) / error
    if abs(distance) < FAR_FROM_CHANCE:
        return f"which cannot be told from {chance}"
    return f"{significant(abs(distance), 2)} standard errors {'above' if distance > 0 else 'below'} {chance}"


def headline(accuracy: Accuracy) -> tuple[str, float, float | None] | None:
    """The one protocol to name in a sentence: (its key, share, standard error)."""
    for key in ("acc_norm", "acc", "acc_norm_token"):
        share = getattr(accuracy, key)
        if not missing(share):
            return key, share, getattr(accuracy, f"{key}_stderr")
    return None


def _trained(run: Run) -> str:
    train = run.train
    layers = run.setting("model.n_layer")
    start = run.setting("model.init_from")
    kind = f"A GPT of {layers} layer{'' if layers == 1 else 's'}" if layers else "A GPT"
    size = "" if train.parameters.total is None else f" and {count(train.parameters.total)} parameters"
    if size and not layers:
        size = size.replace(" and", " with")
    origin = f", starting from {start}," if start not in (None, "scratch") else ""
    read = f" read {count(train.tokens)} tokens"
    if (epochs := passes(run)) is not None:
        read += f" ({significant(epochs, 2)} passes over its training text)"
    took = "" if missing(train.train_time_s) else f" in {duration(train.train_time_s)}"
    return f"{kind}{size}{origin}{read}{took} on {hardware(train.hardware)}."


def _predicts(run: Run) -> str:
    val = run.metrics.val if run.metrics else None
    if val is None:
        return "It has not been evaluated on validation text."
    if missing(val.loss):
        return "Its validation loss is not a finite number: training has diverged or nothing was scored."
    parts = [f"a loss of {fixed(val.loss, 3)} nats per token (perplexity {significant(val.perplexity, 3)})"]
    if not missing(val.bpb):
        parts.append(f"{fixed(val.bpb, 3)} bits per byte")
    return f"It predicts {exact(val.tokens)} tokens of validation text with {', '.join(parts)}."


def _chooses(accuracy: Accuracy | None) -> str:
    chosen = headline(accuracy) if accuracy is not None and accuracy.items else None
    if accuracy is None or chosen is None:
        return "No multiple-choice items were scored."
    key, share, error = chosen
    within = "" if missing(error) else f" ± {percent(error)}"
    which = "of HellaSwag" if accuracy.is_hellaswag else f'cut from the validation text ("{NEXT_LINES}", not HellaSwag)'
    return (
        f"On {exact(accuracy.items)} four-way items {which} it chooses the true ending "
        f"{percent(share)}{within} of the time ({key}), {from_chance(share, error)}."
    )
