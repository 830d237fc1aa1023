"""What a training of any depth, rate and length would score, learnt from the readings of a search; no Ray.

The score of a training of D tokens with k copies at the rate r is modelled as

    h(u, v) · exp(-c · (ρ - ρ*(u, v))²) + offset of k + offset of the variant,
    u = log2 D, v = log2 k, ρ = log2 r

where the height h is quadratic and the best rate ρ* linear in u and v, both about the longest reading. Scores
are dialled, so they are flat about the best rate and 0 far from it. The offset of a k is what a smooth curve
doesn't say of it: which layers its copies come from. A variant is all else that trials were searched over.
Priors are wide and in units of the scores read, so that few readings give a wide answer in place of none:
gains grow slowly as tokens double, and the best rate falls as tokens (arXiv 2409.19913) and copies grow.

The posterior is Gaussian about its mode, one for each of several sizes of the noise, which have the weight
that the readings give them (Laplace's approximation; MacKay 2003, chapter 27).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares
from scipy.special import logsumexp

DRAWS = 2000  # functions drawn from the posterior
# Mean and standard deviation of each parameter's prior. Heights are in units of the largest score read, for
# a doubling of tokens (u), of copies (v); rates in doublings of the rate.
PRIORS = {
    "height": (1.0, 0.5),
    "height_u": (0.14, 0.1),
    "height_v": (0.03, 0.08),
    "height_uv": (0.005, 0.02),
    "height_uu": (-0.005, 0.01),
    "height_vv": (-0.015, 0.03),
    "log_sharpness": (math.log(0.018), 0.6),
    "rate": (0.0, 1.3),
    "rate_u": (-0.2, 0.2),
    "rate_v": (-0.25, 0.25),
}
HEIGHT, SHARPNESS, RATE = slice(0, 6), 6, slice(7, 10)  # their numbers
OFFSET = 0.02  # standard deviation of what a smooth curve doesn't say of a k, same unit
VARIANT = 0.03  # the same of variants
NOISES = np.geomspace(0.005, 0.32, 8)  # of a training among those that differ by their seeds, same unit
USUAL_NOISE, NOISE_SPREAD = 0.02, 0.7  # the noise expected beforehand, and how sure that is: a log-normal
SHARED = 0.5  # share of the noise's variance that readings along one training have in common
# Variance that readings of a length have in common, in that of the noise: the trials of a search see the same
# text in the same order, and some pieces of it teach more than others.
SAME_TEXT = 2.0
# Standard deviation, a doubling beyond the longest reading, of what curves do out there alone: all of them,
# and each with a doubling of copies; and the power by which it grows (an integrated random walk's).
BEYOND, BENDING = (0.01, 0.004), 1.5
LEAST_SCALE = 0.5  # points
TRUSTED_MISSES = 2  # as good as the model was, before it was tried on what it hadn't seen


@dataclass(frozen=True)
class ScoreReading:
    """What a training of so many tokens scores on validation."""

    trial: str
    """Readings of one trial share its seed and most of its training."""
    k: int
    """Copies; at least 1."""
    rate: float
    tokens: int
    score: float
    """Points, at the best dial."""
    variant: str = ""
    """All other settings that trials differ by."""
    pulls: tuple[float, ...] = ()
    """How far each document or item pulls the score; the root of the sum of squares is its standard error."""


@dataclass(frozen=True)
class Frame:
    """Where the parameters of a model are centred, and their unit."""

    scale: float
    """Points."""
    tokens: float
    copies: float
    rate: float
    depths: tuple[int, ...]
    """Every k that can be asked for, ascending."""
    variants: tuple[str, ...]
    """Every one that was read."""

    def place(self, k: npt.ArrayLike, tokens: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """u and v of depths and lengths."""
        return np.log2(np.divide(tokens, self.tokens)), np.log2(np.divide(k, self.copies))

    def find_depth(self, k: int) -> int:
        """Number of the parameter that is the offset of a k."""
        return len(PRIORS) + self.depths.index(k)

    def find_variant(self, variant: str) -> int:
        """Number of the parameter that is the offset of a variant."""
        return len(PRIORS) + len(self.depths) + self.variants.index(variant)


@dataclass(frozen=True)
class Posterior:
    """The parameters for one size of the noise, as a Gaussian."""

    mode: np.ndarray
    covariance: np.ndarray
    """Of what is left unknown by the trainings read, on these documents."""
    sampling: np.ndarray
    """Of what other documents would say."""
    log_evidence: float
    noise: float
    """Points."""


@dataclass(frozen=True)
class ScoreModel:
    """A posterior over what trainings score, as functions drawn from it."""

    frame: Frame
    draws: np.ndarray
    """Parameters drawn, [draws, parameters], with all parts of the error."""
    same_text: np.ndarray
    """The same on the documents that were read, without the error of other documents."""
    noise: np.ndarray
    """Of a single training, points, [draws]."""
    bends: np.ndarray
    """What all curves do at a doubling beyond the longest reading, and not before, and what they do with each
    doubling of copies, scaled, [2, draws]."""
    longest: int
    """Tokens of the longest reading."""
    rates: tuple[float, float]
    """The lowest and the highest base rate that was read."""
    variant: str
    """The one that is expected to score highest; all else is said of that."""
    stretch: float = 1.0
    """By how much errors grow beyond the longest reading: as far as the model missed what it hadn't seen."""

    def draw_best(self, k: int, tokens: float, rates: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
        """The score of k copies at their best rate between `rates`, and that rate; [draws] each."""
        return self._read(self.draws, k, tokens, rates)

    def predict(self, k: int, tokens: float, rate: float) -> np.ndarray:
        """What one training would read on the documents of the readings, [draws]."""
        scores, _ = self._read(self.same_text, k, tokens, (rate, rate))
        generator = np.random.default_rng(k)
        return scores + self.noise * math.sqrt(1 + SAME_TEXT) * generator.standard_normal(len(scores))

    def _read(
        self, draws: np.ndarray, k: int, tokens: float, rates: tuple[float, float]
    ) -> tuple[np.ndarray, np.ndarray]:
        u, v = self.frame.place(k, tokens)
        low, high = (math.log2(rate / self.frame.rate) for rate in rates)
        best = np.clip(compute_best_rate(draws.T, u, v), low, high)
        values = draws.T
        offset = values[self.frame.find_depth(k)] + values[self.frame.find_variant(self.variant)]
        scores = compute_scores(values, u, v, best, offset)
        if tokens > self.longest:
            scores = scores + (self.bends[0] + self.bends[1] * v) * float(u) ** BENDING
            scores = scores.mean() + self.stretch * (scores - scores.mean())
        return self.frame.scale * scores, self.frame.rate * np.exp2(best)


def compute_best_rate(values: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """ρ* by the parameters `values`, [parameters] or [parameters, draws]."""
    rate, by_u, by_v = values[RATE]
    best: np.ndarray = rate + by_u * u + by_v * v
    return best


def compute_scores(
    values: np.ndarray, u: np.ndarray, v: np.ndarray, rate: np.ndarray, offset: np.ndarray
) -> np.ndarray:
    """The modelled score in units of the scale; arrays as in :func:`compute_best_rate`."""
    height, by_u, by_v, by_uv, by_uu, by_vv = values[HEIGHT]
    level = height + by_u * u + by_v * v + by_uv * u * v + by_uu * u * u + by_vv * v * v
    distance = rate - compute_best_rate(values, u, v)
    scores: np.ndarray = level * np.exp(-np.exp(values[SHARPNESS]) * distance**2) + offset
    return scores


def compute_slopes(values: np.ndarray, u: np.ndarray, v: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """How :func:`compute_scores` follows the parameters but for offsets, [readings, len(PRIORS)]."""
    bases = np.stack([np.ones_like(u), u, v, u * v, u * u, v * v])
    level, sharpness = values[HEIGHT] @ bases, np.exp(values[SHARPNESS])
    distance = rate - compute_best_rate(values, u, v)
    share = np.exp(-sharpness * distance**2)
    by_sharpness = -level * share * sharpness * distance**2
    by_rate = 2 * level * share * sharpness * distance
    return np.stack([*(share * bases), by_sharpness, *(by_rate * bases[:3])], axis=1)


def fit_scores(readings: Sequence[ScoreReading], depths: Sequence[int], seed: int = 0) -> ScoreModel:
    """The model of what trainings of `depths` copies score, from finite readings of some of them.

    With readings of several lengths the model is first tried on the longest, from the others alone: as far
    as it missed them its errors grow beyond the longest reading.
    """
    longest = max(reading.tokens for reading in readings)
    model = draw_model(readings, depths, seed)
    shorter = [reading for reading in readings if reading.tokens < longest]
    if not shorter:
        return model
    earlier = draw_model(shorter, depths, seed)
    misses = [measure_miss(earlier, each) for each in readings if each.tokens == longest]
    square = (TRUSTED_MISSES + sum(miss**2 for miss in misses)) / (TRUSTED_MISSES + len(misses))
    return replace(model, stretch=max(1.0, math.sqrt(square)))


def measure_miss(model: ScoreModel, reading: ScoreReading) -> float:
    """How far a reading lies from what the model says of it, in standard errors."""
    expected = model.predict(reading.k, reading.tokens, reading.rate)
    return float((reading.score - expected.mean()) / expected.std())


def draw_model(readings: Sequence[ScoreReading], depths: Sequence[int], seed: int) -> ScoreModel:
    """The model of these readings, without any trial of it."""
    frame = choose_frame(readings, depths)
    posteriors = [fit_posterior(readings, frame, noise) for noise in NOISES]
    evidence = np.array([each.log_evidence for each in posteriors])
    shares = np.exp(evidence - logsumexp(evidence))
    generator = np.random.default_rng(seed)
    counts = generator.multinomial(DRAWS, shares / shares.sum())
    same, every, noises = [], [], []
    for posterior, count in zip(posteriors, counts, strict=True):
        drawn = generator.multivariate_normal(
            posterior.mode, posterior.covariance, count, check_valid="ignore", method="eigh"
        )
        others = generator.multivariate_normal(
            np.zeros_like(posterior.mode), posterior.sampling, count, check_valid="ignore", method="eigh"
        )
        same.append(drawn)
        every.append(drawn + others)
        noises.append(np.full(count, posterior.noise))
    rates = [reading.rate for reading in readings]
    draws = np.concatenate(every)
    means = draws.mean(axis=0)
    return ScoreModel(
        frame=frame,
        draws=draws,
        same_text=np.concatenate(same),
        noise=np.concatenate(noises),
        bends=np.array(BEYOND)[:, None] * generator.standard_normal((2, len(draws))),
        longest=max(reading.tokens for reading in readings),
        rates=(min(rates), max(rates)),
        variant=max(frame.variants, key=lambda each: float(means[frame.find_variant(each)])),
    )


def choose_frame(readings: Sequence[ScoreReading], depths: Sequence[int]) -> Frame:
    """Where the parameters of these readings are centred: the longest length, the middle of k and rate."""
    return Frame(
        scale=max(LEAST_SCALE, *(abs(reading.score) for reading in readings)),
        tokens=max(reading.tokens for reading in readings),
        copies=float(np.exp(np.mean([math.log(reading.k) for reading in readings]))),
        rate=float(np.exp(np.mean([math.log(reading.rate) for reading in readings]))),
        depths=tuple(sorted(depths)),
        variants=tuple(sorted({reading.variant for reading in readings})),
    )


def fit_posterior(readings: Sequence[ScoreReading], frame: Frame, noise: float) -> Posterior:
    """The parameters that the readings leave likely, where trainings differ by so much `noise`."""
    k, tokens, rate, score = (
        np.array([getattr(reading, name) for reading in readings], dtype=float)
        for name in ("k", "tokens", "rate", "score")
    )
    u, v = frame.place(k, tokens)
    rho, target = np.log2(rate / frame.rate), score / frame.scale
    depth = np.array([frame.find_depth(reading.k) for reading in readings])
    variant = np.array([frame.find_variant(reading.variant) for reading in readings])
    spreads = [OFFSET] * len(frame.depths) + [VARIANT] * len(frame.variants)
    means = np.array([mean for mean, _ in PRIORS.values()] + [0.0] * len(spreads))
    errors = np.array([error for _, error in PRIORS.values()] + spreads)
    trials = np.array([reading.trial for reading in readings])
    same = trials[:, None] == trials[None, :]
    alike = SHARED * same + (1 - SHARED) * np.eye(len(readings)) + SAME_TEXT * (u[:, None] == u[None, :])
    covariance = noise**2 * alike
    whiten = np.linalg.inv(np.linalg.cholesky(covariance))

    def compute_residuals(values: np.ndarray) -> np.ndarray:
        modelled = compute_scores(values, u, v, rho, values[depth] + values[variant])
        return np.concatenate([whiten @ (target - modelled), (values - means) / errors])

    shares = np.zeros((len(readings), len(means)))  # of offsets in what is read
    shares[np.arange(len(readings)), depth] = 1
    shares[np.arange(len(readings)), variant] = 1

    def compute_jacobian(values: np.ndarray) -> np.ndarray:
        shares[:, : len(PRIORS)] = compute_slopes(values, u, v, rho)
        return np.concatenate([-whiten @ shares, np.diag(1 / errors)])

    found = least_squares(compute_residuals, means, compute_jacobian, method="lm")
    slopes = found.jac
    hessian = slopes.T @ slopes
    unknown = np.linalg.inv(hessian)
    # How the mode follows the readings, and through them the documents.
    gain = -unknown @ slopes[: len(readings)].T @ whiten
    return Posterior(
        mode=found.x,
        covariance=unknown,
        sampling=gain @ cover_documents(readings, frame.scale) @ gain.T,
        log_evidence=-found.cost
        + float(np.log(np.diag(whiten)).sum())
        - 0.5 * float(np.linalg.slogdet(hessian)[1])
        - 0.5 * ((math.log(noise / USUAL_NOISE)) / NOISE_SPREAD) ** 2,
        noise=noise * frame.scale,
    )


def cover_documents(readings: Sequence[ScoreReading], scale: float) -> np.ndarray:
    """The covariance that other documents would give the readings, [readings, readings].

    All were read on the same documents, and move together with them.
    """
    longest = max(len(reading.pulls) for reading in readings)
    pulls = np.zeros((len(readings), longest))
    for row, reading in zip(pulls, readings, strict=True):
        row[: len(reading.pulls)] = reading.pulls
    covariance: np.ndarray = pulls @ pulls.T / scale**2
    return covariance
