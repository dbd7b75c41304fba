"""What a run knows of multiple choice: under each protocol at its end, and on some items while it trained."""

from dataclasses import dataclass

import numpy as np

from pipeline.reporting.curves import column
from pipeline.reporting.figure import Floats
from pipeline.reporting.numbers import missing
from pipeline.reporting.references import PROTOCOLS, Protocol
from pipeline.reporting.run import Accuracy, Run


@dataclass(frozen=True)
class Probed:
    """Accuracy (acc_norm) as training measured it; shares and their standard errors, 0 to 1."""

    is_hellaswag: bool
    tokens: Floats  # (n,)
    shares: Floats  # (n,)
    items: int | None
    """None where it is not known."""

    @property
    def errors(self) -> Floats | None:
        """(n,), of the mean of a sample, as pipeline.evaluation.hellaswag has it; None without the number of items."""
        if self.items is None:
            return None
        return np.sqrt(self.shares * (1 - self.shares) / max(self.items - 1, 1))


def probed(run: Run) -> Probed | None:
    """The accuracy during training; None where it was measured less than twice, which is no curve."""
    for prefix in ("hellaswag", "next_lines"):
        tokens, shares = column(run.curves, f"{prefix}/acc_norm")
        if len(shares) >= 2:
            return Probed(prefix == "hellaswag", tokens, shares, _items_probed(run))
    return None


def _items_probed(run: Run) -> int | None:
    """As many as were asked for, or all where there are fewer."""
    asked = run.setting("train.hellaswag_items")
    accuracy = run.metrics.accuracy if run.metrics else None
    all_evaluated = run.setting("evaluate.hellaswag_items") is None
    return min(asked, accuracy.items) if asked and accuracy and accuracy.items and all_evaluated else asked


def protocols_measured(accuracy: Accuracy) -> list[tuple[Protocol, float, float | None]]:
    """(protocol, share, standard error) for each protocol that has a number; none without items."""
    found = []
    for protocol in PROTOCOLS:
        share = getattr(accuracy, protocol.metric)
        if accuracy.items and not missing(share):
            found.append((protocol, share, getattr(accuracy, f"{protocol.metric}_stderr")))
    return found
