"""The loss of one recipe as a function of parameters N and tokens D: L(N, D) = E + A / N^alpha + B / D^beta.

Fitted as in Hoffmann et al., arXiv 2203.15556, approach 3. N counts all parameters, embeddings too, as theirs does; D
counts the tokens of all steps, repeated ones too. The bootstrap resamples the points of the fit. scaling.json beside
the page of a comparison holds a fit.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from pipeline.artifacts import Record
from pipeline.comparison.configurations import LOSS, SEED, Configuration
from pipeline.comparison.experiments import metric_params

SCALED = (
    "model.n_layer",
    "model.n_head",
    "model.n_kv_head",
    "model.n_embd",
    "train.total_batch_size",
    "train.max_steps",
    "train.warmup_steps",
    "train.max_lr",
    "train.embedding_lr",
    "train.head_lr",
    "train.vector_lr",
    "train.momentum_warmup_steps",
    SEED,
)
"""The settings that may differ within a recipe: size, training length, and what is tuned for them."""

MIN_SIZES = 3
"""Model sizes, and numbers of tokens, that a fit needs; of their combinations, MIN_SIZES squared."""

SAME_SIZE = 1.1
"""Sizes, or numbers of tokens, within this factor count as one: norms, positions and activations change them less."""

MIN_R2 = 0.9
"""Of the logarithms, for a law that describes its points."""

HUBER_DELTA = 1e-3
"""Of the logarithm of the loss: larger residuals count linearly. As in the paper."""

MIN_EXPONENT, MAX_EXPONENT = 0.01, 3.0
"""Of alpha and beta. A fit below the minimum has not found a dependence on N or D."""

STARTS = (0.1, 0.3, 0.6, 1.0)
"""Values of alpha and beta from which the fit starts, in all combinations."""

RESAMPLES = 300

EXTRAPOLATION = 10
"""How far beyond the runs N, D and N * D may be. The bootstrap measures how well the runs determine the law, not how
long it holds. Within one order of magnitude it can be tested on the runs themselves (`ScalingFit.held_out`)."""

HELD_OUT = 4
"""The test leaves out the points with more than 1 / HELD_OUT of the most compute."""

Floats = NDArray[np.float64]


class Law(Record):
    """The fitted function, in nats per token."""

    E: float
    """The irreducible loss."""
    A: float
    alpha: float
    B: float
    beta: float

    def loss(self, parameters: Any, tokens: Any) -> Any:
        """L(N, D), for numbers or arrays."""
        return self.E + self.A * parameters**-self.alpha + self.B * tokens**-self.beta

    def optimum(self, product: float) -> tuple[float, float]:
        """N and D, both at least 1, with the lowest loss where N * D = product (equation 4 of the paper)."""
        ratio = math.log(self.alpha * self.A) - math.log(self.beta * self.B)
        log = (ratio + self.beta * math.log(product)) / (self.alpha + self.beta)
        parameters = math.exp(min(max(log, 0.0), math.log(product)))
        return parameters, product / parameters


class Point(Record):
    """The best configuration of a model size and a number of tokens; means over its seeds."""

    parameters: int
    tokens: int
    flops: float
    loss: float
    epochs: float
    """How often training read its split."""


class ScalingFit(Record):
    """scaling.json: a law, the points that it was fitted to, and their recipe."""

    stage = "compare"

    law: Law
    intervals: dict[str, tuple[float, float]]
    """95 % intervals of E, A, alpha, B and beta."""
    r2: float
    """Of the logarithms of the loss."""
    points: tuple[Point, ...]
    recipe: dict[str, Any]
    """Dotted key to value of the settings that all runs share."""

    @property
    def flops_per_product(self) -> float:
        """FLOPs / (N * D), the mean of the points. The paper takes 6; here attention counts too."""
        return float(np.mean([point.flops / (point.parameters * point.tokens) for point in self.points]))

    @property
    def residuals(self) -> Floats:
        """(points,) log of measured over fitted loss."""
        return _residuals(self.points, self.law)

    def predict(self, parameters: float, tokens: float) -> tuple[float, float, float]:
        """The loss of a run and its 95 % interval, from the bootstrap and the scatter of the points around the fit."""
        scatter = self.residuals * np.sqrt(len(self.points) / (len(self.points) - len(Law.model_fields)))
        scatter = np.random.default_rng(1).choice(scatter, RESAMPLES)
        losses = np.array([law.loss(parameters, tokens) for law in resampled(self.points, self.law)]) * np.exp(scatter)
        return float(self.law.loss(parameters, tokens)), *interval(losses)

    def optimum(self, flops: float) -> list[tuple[float, float, float]]:
        """N, D and loss of the best use of some FLOPs, each with its 95 % interval."""
        laws = [self.law, *resampled(self.points, self.law)]
        found = [law.optimum(flops / self.flops_per_product) for law in laws]
        rows = [(*best, law.loss(*best)) for law, best in zip(laws, found, strict=True)]
        return [(column[0], *interval(column[1:])) for column in zip(*rows, strict=True)]

    def beyond(self, parameters: float, tokens: float) -> str | None:
        """What is more than EXTRAPOLATION times outside the range of the runs; None if nothing is."""
        ranges = {
            "parameters": (parameters, [point.parameters for point in self.points]),
            "tokens": (tokens, [point.tokens for point in self.points]),
            "parameters * tokens": (parameters * tokens, [point.parameters * point.tokens for point in self.points]),
        }
        outside = (
            name
            for name, (value, runs) in ranges.items()
            if not min(runs) / EXTRAPOLATION <= value <= max(runs) * EXTRAPOLATION
        )
        return next(outside, None)

    def held_out(self) -> tuple[float, list[float]] | None:
        """How well the fit extrapolates: fitted to the smaller points, it predicts the others.

        (how many times the compute of the smaller ones they take at most, error in nats of each). None for too few.
        """
        most = max(point.flops for point in self.points)
        small = tuple(point for point in self.points if point.flops <= most / HELD_OUT)
        large = [point for point in self.points if point.flops > most / HELD_OUT]
        if len(small) < len(Law.model_fields) + 2:
            return None
        law = fit_law(small)
        errors = [float(law.loss(point.parameters, point.tokens)) - point.loss for point in large]
        return most / max(point.flops for point in small), errors


def interval(values: Iterable[float]) -> tuple[float, float]:
    """The central 95 % of some values."""
    low, high = np.percentile(list(values), [2.5, 97.5])
    return float(low), float(high)


def compute_differs(configurations: Sequence[Configuration]) -> bool:
    """Whether the training compute of some runs differs by more than SAME_SIZE."""
    flops = [run.summary.flops for configuration in configurations for run in configuration.runs]
    return bool(flops) and max(flops) >= SAME_SIZE * min(flops)


def recipe(params: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the law of a run depends on, of all params as dotted keys."""
    ignored = ("runtime.", "benchmarks.", "tokenizer.shard_tokens", *SCALED)
    return {key: value for key, value in metric_params(params).items() if not key.startswith(ignored)}


def scaling_fit(configurations: Sequence[Configuration]) -> ScalingFit | None:
    """The law of the best recipe that has enough sizes and numbers of tokens, and that a law describes.

    `configurations`: best first. At each size and number of tokens, the best configuration counts. None if there
    is no such recipe.
    """
    recipes: dict[str, dict[tuple[int, int], Configuration]] = {}
    for configuration in configurations:
        run = configuration.runs[0]
        cells = recipes.setdefault(repr(sorted(recipe(run.params).items())), {})
        cells.setdefault((run.summary.parameters.total, run.summary.tokens), configuration)
    for cells in recipes.values():
        sizes, tokens = (_distinct(values) for values in zip(*cells, strict=True))
        if min(sizes, tokens) >= MIN_SIZES and len(cells) >= MIN_SIZES**2:
            points = tuple(_point(cells[cell]) for cell in sorted(cells))
            if fit := _fit(points, recipe(next(iter(cells.values())).runs[0].params)):
                return fit
    return None


def _fit(points: tuple[Point, ...], shared: dict[str, Any]) -> ScalingFit | None:
    law = fit_law(points)
    spread = float(np.var(np.log([point.loss for point in points])))
    r2 = 1 - float(np.mean(_residuals(points, law) ** 2)) / spread if spread else 0.0
    if r2 < MIN_R2 or min(law.alpha, law.beta) < MIN_EXPONENT:
        return None
    intervals = {name: interval(getattr(other, name) for other in resampled(points, law)) for name in Law.model_fields}
    return ScalingFit(law=law, intervals=intervals, r2=r2, points=points, recipe=shared)


def _point(configuration: Configuration) -> Point:
    run = configuration.runs[0].summary
    return Point(
        parameters=run.parameters.total,
        tokens=run.tokens,
        flops=float(run.flops),
        loss=configuration.mean(LOSS).value,
        epochs=run.epochs or run.tokens / run.data["train"].tokens,
    )


def _distinct(values: Iterable[int]) -> int:
    """How many values there are, those within SAME_SIZE counted once."""
    kept: list[int] = []
    for value in sorted(values):
        if not kept or value >= SAME_SIZE * kept[-1]:
            kept.append(value)
    return len(kept)


def fit_law(points: Sequence[Point]) -> Law:
    """The law with the least sum of Huber losses of the residuals log L(N, D) - log loss, from STARTS."""
    centre, x = _centred(points)
    losses = np.array([point.loss for point in points])
    starts = []
    for alpha in STARTS:
        for beta in STARTS:  # E, A and B by linear least squares of the relative errors
            terms = np.stack([np.ones(len(x)), np.exp(-alpha * x[:, 0]), np.exp(-beta * x[:, 1])], axis=1)
            factors, _ = optimize.nnls(terms / losses[:, None], np.ones(len(x)))
            starts.append(np.array([*np.log(np.maximum(factors, 1e-3)), alpha, beta]))
    found = [_minimize(start, x, np.log(losses)) for start in starts]
    return _law(min(found, key=lambda result: result[1])[0], centre)


@cache
def resampled(points: tuple[Point, ...], law: Law) -> list[Law]:
    """The laws through RESAMPLES resamples of the points, fitted from the law through all of them."""
    centre, x = _centred(points)
    losses = np.log([point.loss for point in points])
    a, b = np.log([law.A, law.B]) - centre * [law.alpha, law.beta]
    start = np.array([np.log(max(law.E, 1e-3)), a, b, law.alpha, law.beta])
    random = np.random.default_rng(1)
    draws = [random.integers(len(points), size=len(points)) for _ in range(RESAMPLES)]
    return [_law(_minimize(start, x[draw], losses[draw])[0], centre) for draw in draws]


def _centred(points: Sequence[Point]) -> tuple[Floats, Floats]:
    """(2,) means of log N and log D, and (points, 2) deviations from them. Centred, A and alpha are less correlated."""
    logs = np.log([[point.parameters, point.tokens] for point in points])
    return logs.mean(axis=0), logs - logs.mean(axis=0)


def _minimize(start: Floats, x: Floats, losses: Floats) -> tuple[Floats, float]:
    """Where the sum of Huber losses is least, and the sum: log E, log A and log B at the centre, alpha, beta.

    BFGS is enough for five parameters; scipy's L-BFGS-B waits for threads that have nothing to do.
    """

    def exponents(theta: Floats) -> Floats:  # any number to between 0 and MAX_EXPONENT
        return MAX_EXPONENT * special.expit(np.clip(theta[3:], -30, 30))

    def objective(theta: Floats) -> tuple[float, Floats]:
        e, a, b = theta[:3]
        powers = exponents(theta)
        terms = np.stack([np.full(len(x), e), a - powers[0] * x[:, 0], b - powers[1] * x[:, 1]])
        total = np.logaddexp.reduce(terms)
        residuals = (total - losses) / HUBER_DELTA  # as a number of deltas, or the search would end too early
        value = np.where(np.abs(residuals) < 1, residuals**2 / 2, np.abs(residuals) - 0.5).sum()
        pull = np.clip(residuals, -1, 1) / HUBER_DELTA * np.exp(terms - total)
        by_power = -(pull[1:] * x.T).sum(axis=1) * powers * (1 - powers / MAX_EXPONENT)
        return float(value), np.concatenate([pull.sum(axis=1), by_power])

    start = np.concatenate([start[:3], special.logit(start[3:] / MAX_EXPONENT)])
    found = optimize.minimize(objective, start, jac=True, method="BFGS")
    return np.concatenate([found.x[:3], exponents(found.x)]), float(found.fun)


def _law(theta: Floats, centre: Floats) -> Law:
    powers = theta[3:]
    E, A, B = np.exp(np.clip(theta[:3] + np.concatenate([[0.0], powers * centre]), -300, 300)).tolist()
    return Law(E=E, A=A, alpha=float(powers[0]), B=B, beta=float(powers[1]))


def _residuals(points: Sequence[Point], law: Law) -> Floats:
    return np.array([np.log(point.loss / law.loss(point.parameters, point.tokens)) for point in points])
