"""Measure an estimator on the pairs of a suite.

`evaluate` runs the estimator on every pair and returns all answers, as `Rows`. `figures` computes
the numbers of a table from rows, which may also be read from disk. `measure_time` times the
estimator.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxreg.compute.batching import pairs_that_fit, runs_on_cpu
from jaxreg.evaluation.protocol import PAIRS, SuiteData
from jaxreg.evaluation.suites import GROSS_DEGREES, parse_suite
from jaxreg.result import Estimator, Registration

PARAMETERS = ("tx", "ty", "theta")
_COVERAGES = (0.5, 0.8, 0.9, 0.95, 0.99, 1.0)  # shares of the pairs at which risk is reported
_BUDGET = 5.0  # seconds for the calls with one pair, and for those of each batch size
_CPU_BATCHES = (1, 16, 64, 256, 1024)
_ACCELERATOR_BATCHES = (*_CPU_BATCHES, 4096, 16384)


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """The answers of one method to the N pairs of one suite, one row for each pair.

    Attributes:
      suite: name of the suite, for `parse_suite`.
      method: name of the method, for `jaxreg.methods.find_method`.
      condition: ``(N,)`` int, see `jaxreg.evaluation.protocol.conditions`.
      truth: ``(N, 3)`` true (tx, ty, theta) in px, px and degrees.
      estimate: ``(N, 3)`` estimated (tx, ty, theta); meaningless where not ``found``.
      score: ``(N,)``, see `Registration`.
      success: ``(N,)`` bool, see `Registration`.
      found: ``(N,)`` bool: whether there is an answer and it is finite.
      variance: ``(N, 3)`` predicted variances in px^2, px^2 and degrees^2, or None.
      bound: ``(N, 3)`` Cramér-Rao variances in the same units, or None.
    """

    suite: str
    method: str
    condition: np.ndarray
    truth: np.ndarray
    estimate: np.ndarray
    score: np.ndarray
    success: np.ndarray
    found: np.ndarray
    variance: np.ndarray | None = None
    bound: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class _Answer:
    """The fields of a batch's `Registration`, as arrays with one row for each pair."""

    estimate: np.ndarray
    score: np.ndarray
    success: np.ndarray
    found: np.ndarray
    variance: np.ndarray | None


def _checked_answer(answer: Registration, batch: int, count: int, method: str) -> _Answer:
    """Check the answer to a batch of ``batch`` pairs and return its first ``count`` rows."""
    if not isinstance(answer, Registration):
        raise ValueError(f"method {method} must return a Registration, got {type(answer).__name__}")
    estimate = np.asarray(answer.transform.as_array())
    if estimate.shape != (batch, 3):
        raise ValueError(
            f"method {method} must return {batch} transforms for {batch} pairs, "
            f"got fields of shape {estimate.shape[:-1]}"
        )

    def column(name: str, dtype: type) -> np.ndarray:
        values: np.ndarray = np.asarray(getattr(answer, name), dtype)
        if values.shape not in ((), (batch,)):
            raise ValueError(
                f"method {method} must return {name} of shape ({batch},) for {batch} pairs, "
                f"got {values.shape}"
            )
        return np.broadcast_to(values, batch)[:count]

    variance = None
    if answer.covariance is not None:
        covariance = np.asarray(answer.covariance)
        if covariance.shape != (batch, 3, 3):
            raise ValueError(
                f"method {method} must return a covariance of shape ({batch}, 3, 3) for {batch} "
                f"pairs, got {covariance.shape}"
            )
        variance = np.diagonal(covariance, axis1=-2, axis2=-1)[:count]
    success, found = column("success", bool), column("found", bool)
    return _Answer(estimate[:count], column("score", np.float32), success, found, variance)


def evaluate(
    estimator: Estimator,
    data: SuiteData,
    batch_size: int = 256,
    method: str = "method",
    progress: Callable[[int], Any] | None = None,
) -> Rows:
    """Run an estimator on every pair of a suite.

    Args:
      estimator: a function from batches of pairs to `Registration`; need not be jittable.
      data: the pairs.
      batch_size: pairs in a call. The last batch repeats its last pair until it is full, so that
        all calls have one shape; the answers to the repetitions are dropped.
      method: the estimator's name.
      progress: called after each batch with the number of its pairs.

    Raises:
      ValueError: the estimator does not return one answer for each pair.
    """
    pairs = len(data.fixed)
    batch_size = min(batch_size, pairs)
    answers = []
    for start in range(0, pairs, batch_size):
        index = np.minimum(np.arange(start, start + batch_size), pairs - 1)
        fixed, moving = data.fixed[index], data.moving[index]
        answer = estimator(fixed, moving)
        count = min(batch_size, pairs - start)
        answers.append(_checked_answer(answer, batch_size, count, method))
        if progress is not None:
            progress(count)
    estimate = np.concatenate([a.estimate for a in answers])
    variances = [a.variance for a in answers if a.variance is not None]
    if len(variances) not in (0, len(answers)):
        raise ValueError(f"method {method} must return covariances of all pairs or of none")
    return Rows(
        suite=data.suite.name,
        method=method,
        condition=data.condition,
        truth=data.truth,
        estimate=estimate,
        score=np.concatenate([a.score for a in answers]),
        success=np.concatenate([a.success for a in answers]),
        found=np.concatenate([a.found for a in answers]) & np.isfinite(estimate).all(-1),
        variance=np.concatenate(variances) if variances else None,
        bound=data.bound,
    )


def parameter_errors(rows: Rows) -> np.ndarray:
    """Compute ``(N, 3)`` float64 signed errors of (tx, ty, theta), the angle's in [-180, 180)."""
    estimate = np.where(rows.found[:, None], rows.estimate, 0.0).astype(np.float64)
    errors = estimate - rows.truth
    errors[:, 2] = (errors[:, 2] + 180.0) % 360.0 - 180.0
    return errors


def gross_errors(rows: Rows) -> np.ndarray:
    """Return ``(N,)`` bool: which answers are gross errors, see `figures`."""
    errors, suite = np.abs(parameter_errors(rows)), parse_suite(rows.suite)
    far = errors[:, :2].sum(-1) > suite.gross_pixels
    return rows.found & (far | (errors[:, 2] > GROSS_DEGREES) | suite.unrelated)


def _spread(values: np.ndarray, condition: np.ndarray, pairs: int) -> dict[str, float | None]:
    """Mean, spread, median and 95th percentile of the answered pairs, of ``pairs``; see `figures`.

    The spread is the standard deviation of the condition means.
    """
    if not values.size:
        return dict.fromkeys(("mean", "spread", "median", "p95"))
    counts = np.bincount(condition)
    means = np.bincount(condition, values)[counts > 0] / counts[counts > 0]
    return {
        "mean": float(values.mean()),
        "spread": float(means.std()) if pairs >= PAIRS else None,
        "median": float(np.median(values)),
        "p95": float(np.percentile(values, 95)),
    }


def _rate(hits: np.ndarray) -> float | None:
    return float(hits.mean()) if hits.size else None


def risk_curve(score: np.ndarray, success: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Compute ``(N,)`` shares of wrong answers among the 1, 2, ... N most confident ones.

    Confidence is ``success`` first, then ``score``. Ties are averaged, as if their order were
    random (Geifman and El-Yaniv, 2017, arXiv:1705.08500).

    >>> wrong = np.array([False, True, False])
    >>> risk_curve(np.array([0.9, 0.2, 0.5]), np.array([True, False, True]), wrong)[:2].tolist()
    [0.0, 0.0]
    """
    order = np.lexsort((-np.nan_to_num(score, nan=-np.inf), ~success))
    keys = np.stack([success, np.nan_to_num(score, nan=-np.inf)], -1)[order]
    new = np.r_[True, (keys[1:] != keys[:-1]).any(-1)]
    group = np.cumsum(new) - 1
    share = np.bincount(group, wrong[order]) / np.bincount(group)
    return np.cumsum(share[group]) / np.arange(1, len(wrong) + 1)


def risk_coverage(score: np.ndarray, success: np.ndarray, wrong: np.ndarray) -> dict[str, Any]:
    """Summarise the risk (share of wrong answers) at each coverage (share kept), see `risk_curve`.

    Returns:
      ``area`` under the curve of risk against coverage (0 is perfect), and ``risk`` at several
      coverages, as ``{"0.5": ..., ...}``.
    """
    risk = risk_curve(score, success, wrong)
    at = [max(1, math.ceil(c * len(wrong))) - 1 for c in _COVERAGES]
    return {
        "area": float(risk.mean()),
        "risk": {f"{c:g}": float(risk[i]) for c, i in zip(_COVERAGES, at, strict=True)},
    }


def _by_parameter(values: np.ndarray) -> dict[str, float]:
    return dict(zip(PARAMETERS, values.tolist(), strict=True))


def calibration(errors: np.ndarray, variance: np.ndarray) -> dict[str, Any] | None:
    """Compute the mean of error^2 / predicted variance: 1 if the covariance is right.

    Pairs without a finite positive variance are left out; ``pairs`` says how many were used. The
    caller should leave out gross errors, as `figures` does: a covariance describes the scatter of
    answers around the truth, not errors that lead far away from it.

    Args:
      errors: ``(N, 3)`` errors of (tx, ty, theta).
      variance: ``(N, 3)`` their predicted variances.

    Returns:
      ``pairs`` and a mean for each parameter, or None if there are no usable pairs.
    """
    usable = (np.isfinite(variance) & (variance > 0)).all(-1)
    if not usable.any():
        return None
    ratio = (errors[usable] ** 2 / variance[usable]).mean(0)
    return {"pairs": int(usable.sum()), **_by_parameter(ratio)}


def cramer_rao_ratio(errors: np.ndarray, bound: np.ndarray) -> dict[str, Any] | None:
    """Compute the RMSE divided by the root of the mean bound: 1 is the best possible.

    Pairs that do not determine the transform (an infinite bound) are left out. The caller should
    leave out gross errors, as `figures` does: the bound holds for errors around the truth.

    Args:
      errors: ``(N, 3)`` errors of (tx, ty, theta).
      bound: ``(N, 3)`` Cramér-Rao variances.

    Returns:
      ``pairs``, the number used, and a ratio for each parameter, or None if there are none.
    """
    usable = np.isfinite(bound).all(-1)
    if not usable.any():
        return None
    ratio = np.sqrt((errors[usable] ** 2).mean(0) / bound[usable].astype(np.float64).mean(0))
    return {"pairs": int(usable.sum()), **_by_parameter(ratio)}


def figures(rows: Rows) -> dict[str, Any]:
    """Compute every number of a table's row except the time.

    Errors are those of the answered pairs. Their ``spread`` is the standard deviation of the means
    of the conditions, and None for fewer than `jaxreg.evaluation.protocol.PAIRS` pairs: means of
    fewer pairs scatter more. Rates are in [0, 1], and None if there is nothing to
    count:

    - ``no_answer``, ``gross`` (answered, but the rotation error exceeds 5 degrees or the
      translation error `Suite.gross_pixels`, or the images are unrelated) and their sum
      ``failure``: shares of all pairs;
    - ``rejected``: share of all pairs for which ``success`` is False;
    - ``flagged_failures``, ``flagged_gross``, ``rejected_good``: the share for which ``success`` is
      False, of the failures, of the gross errors, and of the answers that are not gross.

    ``calibration`` and ``cramer_rao`` are of the answers that are not gross: read them together
    with ``gross``.
    """
    errors = parameter_errors(rows)
    translation, rotation = np.abs(errors[:, :2]).sum(-1), np.abs(errors[:, 2])
    found, success = rows.found, rows.success & rows.found
    gross = gross_errors(rows)
    good = found & ~gross
    return {
        "suite": rows.suite,
        "method": rows.method,
        "pairs": len(found),
        "answered": int(found.sum()),
        "translation": _spread(translation[found], rows.condition[found], len(found)),
        "rotation": _spread(rotation[found], rows.condition[found], len(found)),
        "no_answer": _rate(~found),
        "gross": _rate(gross),
        "failure": _rate(~good),
        "rejected": _rate(~success),
        "flagged_failures": _rate(~success[~good]),
        "flagged_gross": _rate(~success[gross]),
        "rejected_good": _rate(~success[good]),
        "risk_coverage": risk_coverage(rows.score, success, ~good),
        "calibration": None
        if rows.variance is None
        else calibration(errors[good], rows.variance[good]),
        "cramer_rao": None
        if rows.bound is None
        else cramer_rao_ratio(errors[good], rows.bound[good]),
    }


def _seconds(estimator: Estimator, fixed: np.ndarray, moving: np.ndarray) -> float:
    """Time one call, from NumPy images to NumPy parameters, including the wait for the device."""
    start = time.perf_counter()
    answer = estimator(fixed, moving)
    jax.block_until_ready(answer)
    np.asarray(answer.transform.as_array())
    return time.perf_counter() - start


def _batches(data: SuiteData) -> list[int]:
    """Batch sizes to time. On an accelerator they may exceed the suite, whose pairs then repeat."""
    if runs_on_cpu():
        return [batch for batch in _CPU_BATCHES if batch <= len(data.fixed)]
    most = pairs_that_fit(data.fixed.shape[1:])
    return [batch for batch in _ACCELERATOR_BATCHES if batch <= most]


def measure_time(
    estimator: Estimator, data: SuiteData, repeats: int = 50
) -> dict[str, float | int]:
    """Measure the seconds to register one pair, and pairs a second at the best batch size.

    Args:
      estimator: the estimator to time.
      data: pairs to time it on; each call gets different ones.
      repeats: calls with one pair, after warm-up, of which the median is taken. Slow methods are
        called less often, and not with batches that would take long.

    Returns:
      ``seconds``, ``pairs_per_second`` and ``best_batch``, the batch size of the latter.
    """
    pairs = len(data.fixed)

    def timed(batch: int, repeats: int) -> float:
        def images(k: int) -> tuple[np.ndarray, np.ndarray]:
            index = (np.arange(batch) + k * batch) % pairs
            return data.fixed[index], data.moving[index]

        _seconds(estimator, *images(0))  # compiles
        warm = _seconds(estimator, *images(1))
        calls = max(3, min(repeats, int(_BUDGET / max(warm, 1e-9))))
        return float(np.median([_seconds(estimator, *images(k)) for k in range(2, 2 + calls)]))

    single = timed(1, repeats)
    best, best_batch = 1.0 / single, 1
    for batch in _batches(data)[1:]:
        if batch / best > _BUDGET / 2:
            break
        throughput = batch / timed(batch, 5)
        if throughput > best:
            best, best_batch = throughput, batch
    return {"seconds": single, "pairs_per_second": best, "best_batch": best_batch}
