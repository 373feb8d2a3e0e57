"""Figures of the harness against hand-computed ones, on estimators whose errors are known."""

import dataclasses
import re
import types

import numpy as np
import pytest

from jaxreg.evaluation import harness, report
from jaxreg.evaluation.harness import (
    Rows,
    calibration,
    cramer_rao_ratio,
    evaluate,
    figures,
    measure_time,
    parameter_errors,
    risk_coverage,
    risk_curve,
)
from jaxreg.evaluation.protocol import SuiteData, draw_parameters
from jaxreg.evaluation.suites import parse_suite
from jaxreg.geometry import RigidTransform
from jaxreg.result import Registration


def suite_data(pairs=3840, spec="cifar10", bound=None):
    """Pairs whose images are not images: the truth is written into the moving one."""
    suite = parse_suite(spec)
    truth, condition = draw_parameters(pairs, suite.max_shift, seed=0)
    moving = np.zeros((pairs, 1, 1, 3), np.float32)
    moving[:, 0, 0] = truth
    return SuiteData(suite, np.zeros_like(moving), moving, truth, condition, bound)


def answer(parameters, **more):
    fields = {"score": np.ones(len(parameters)), "success": np.ones(len(parameters), bool)} | more
    return Registration(RigidTransform.from_array(parameters), **fields)


def oracle(fixed, moving):
    return answer(moving[:, 0, 0])


def constant(fixed, moving):
    return answer(np.zeros((len(moving), 3), np.float32))


def rows(errors, suite="cifar10", truth=None, **more):
    """Rows whose signed errors are given."""
    errors = np.asarray(errors, float)
    truth = np.zeros_like(errors) if truth is None else truth
    n = len(errors)
    fields = {
        "condition": np.zeros(n, int),
        "score": np.ones(n),
        "success": np.ones(n, bool),
        "found": np.ones(n, bool),
    } | more
    return Rows(suite=suite, method="m", truth=truth, estimate=truth + errors, **fields)


def test_a_perfect_method():
    f = figures(evaluate(oracle, suite_data(), 256))
    assert f["pairs"] == f["answered"] == 3840
    for name in ("translation", "rotation"):
        assert set(f[name].values()) == {0.0}
    assert f["gross"] == f["failure"] == f["no_answer"] == f["rejected"] == f["rejected_good"] == 0
    assert f["flagged_gross"] is None
    assert f["risk_coverage"]["area"] == 0


def test_the_constant_predictor_errs_as_uniform_truth_does():
    f = figures(evaluate(constant, suite_data(), 256))
    # |tx| + |ty| has mean R; |theta| has mean 90. The bins leave 1/sqrt(3840) of 2.5/sqrt(12) px.
    np.testing.assert_allclose(f["translation"]["mean"], 5.0, atol=0.05)
    np.testing.assert_allclose(f["rotation"]["mean"], 90.0, atol=0.3)
    np.testing.assert_allclose(f["rotation"]["median"], 90.0, atol=1.5)
    np.testing.assert_allclose(f["rotation"]["p95"], 171.0, atol=1.5)
    # Condition means of |theta| are the middles of 12 bins: 7.5, 22.5 ... 172.5.
    spread = np.hypot(np.std(np.arange(7.5, 180, 15)), 15 / np.sqrt(12) / np.sqrt(10))
    np.testing.assert_allclose(f["rotation"]["spread"], spread, atol=0.5)
    assert f["gross"] > 0.99


def test_spread_is_over_condition_means():
    four = np.tile([[1, 1, 0], [0, 2, 0], [0.5, 0, 0], [0, -0.5, 3]], (960, 1))
    f = figures(rows(four, condition=np.tile([0, 0, 7, 7], 960)))
    # Translation errors 2, 2 | 0.5, 0.5; rotation errors 0, 0 | 0, 3.
    assert f["translation"]["mean"] == 1.25
    assert f["translation"]["spread"] == 0.75
    assert f["rotation"]["mean"] == f["rotation"]["spread"] == 0.75


def test_fewer_pairs_have_no_spread_for_it_would_be_another_statistic():
    f = figures(evaluate(constant, suite_data(3839), 256))
    assert f["translation"]["spread"] is f["rotation"]["spread"] is None
    assert f["translation"]["mean"] > 4
    table = report.text_table([f])
    assert "±" not in table
    assert f"{f['translation']['mean']:.4f}" in table
    assert "±" in report.text_table([figures(evaluate(constant, suite_data(3840), 256))])


def test_angles_are_circular():
    truth = np.float32([[0, 0, 179], [0, 0, -180]])
    r = dataclasses.replace(rows(np.zeros((2, 3)), truth=truth), estimate=-truth)
    np.testing.assert_array_equal(parameter_errors(r)[:, 2], [2, 0])


@pytest.mark.parametrize(("spec", "gross"), [("cifar10", 3 / 4), ("stl10", 2 / 4)])
def test_gross_errors(spec, gross):
    errors = [[1.5, 0.4, 4.9], [1.5, -0.6, 0], [0, 0, -5.1], [4.1, 0, 0]]
    f = figures(rows(errors, spec, success=np.array([True, False, True, False])))
    assert f["gross"] == f["failure"] == gross
    assert f["rejected"] == 0.5


def test_every_answer_to_unrelated_images_is_wrong():
    success = np.array([True, False, False, False])
    f = figures(rows(np.zeros((4, 3)), "cifar10+unrelated", success=success))
    assert f["gross"] == 1
    assert f["flagged_gross"] == 0.75
    assert f["rejected_good"] is None


def test_no_answer_for_half():
    def half(fixed, moving):
        found = np.arange(len(moving)) % 2 == 0
        wrong = np.where(found[:, None], moving[:, 0, 0] + [0.5, 0, 1], 0)
        return answer(wrong, success=np.ones(len(moving), bool), found=found)

    f = figures(evaluate(half, suite_data(768), 96))
    assert f["answered"] == 384
    assert f["no_answer"] == f["failure"] == f["rejected"] == 0.5  # without an answer, no success
    assert f["gross"] == f["rejected_good"] == 0
    assert f["flagged_failures"] == 1
    np.testing.assert_allclose(f["translation"]["mean"], 0.5, atol=1e-6)
    np.testing.assert_allclose(f["rotation"]["mean"], 1.0, atol=1e-5)


def test_no_answer_at_all_and_answers_that_are_not_numbers():
    def lost(fixed, moving):
        return answer(np.full((len(moving), 3), np.nan))

    f = figures(evaluate(lost, suite_data(10), 4))
    assert f["answered"] == 0
    assert f["no_answer"] == f["failure"] == 1
    assert f["translation"]["mean"] is None
    assert "-" in report.text_table([f])


def test_the_table_says_of_which_answers_a_ratio_is():
    variance = np.ones((2, 3))
    f = figures(rows(np.ones((2, 3)), variance=variance, bound=variance))
    assert report.text_table([f]).count("(not gross)") == 2
    assert "(not gross)" not in report.text_table([figures(rows(np.ones((2, 3))))])


def test_the_last_partial_batch_is_kept_and_padded():
    shapes, done = [], []

    def watched(fixed, moving):
        shapes.append(moving.shape[0])
        return oracle(fixed, moving)

    r = evaluate(watched, suite_data(25), 10, "watched", done.append)
    assert shapes == [10, 10, 10]
    assert done == [10, 10, 5]
    np.testing.assert_array_equal(r.estimate, r.truth)
    assert len(r.score) == 25


def test_wrong_answers_are_named():
    with pytest.raises(ValueError, match="method mine must return a Registration, got tuple"):
        evaluate(lambda f, m: (1, 2), suite_data(4), 4, "mine")
    with pytest.raises(ValueError, match=r"mine must return 4 transforms.*shape \(3,\)"):
        evaluate(lambda f, m: answer(np.zeros((3, 3))), suite_data(4), 4, "mine")


@pytest.mark.parametrize(
    ("field", "shape"),
    [
        *(("covariance", shape) for shape in [(3, 3), (1, 3, 3), (4, 2, 2), (4, 3), (4, 3, 3, 1)]),
        *((name, shape) for name in ("score", "success", "found") for shape in [(4, 1), (3,)]),
    ],
)
def test_fields_of_a_wrong_shape_are_named(field, shape):
    method = lambda f, m: answer(np.zeros((4, 3)), **{field: np.ones(shape)})  # noqa: E731
    with pytest.raises(ValueError, match=f"mine must return .*{field}.*{re.escape(str(shape))}"):
        evaluate(method, suite_data(8), 4, "mine")


def test_covariances_are_of_all_pairs_or_of_none():
    calls = iter([None, np.ones((4, 3, 3))])
    method = lambda f, m: answer(np.zeros((4, 3)), covariance=next(calls))  # noqa: E731
    with pytest.raises(ValueError, match="mine must return covariances of all pairs or of none"):
        evaluate(method, suite_data(8), 4, "mine")


def test_risk_coverage_by_hand():
    wrong = np.array([False, True, False, True])
    score = np.array([0.9, 0.8, 0.7, 0.99])
    success = np.array([True, True, True, False])  # the best score, but flagged: comes last
    curve = risk_coverage(score, success, wrong)
    np.testing.assert_allclose(curve["area"], np.mean([0, 1 / 2, 1 / 3, 2 / 4]))
    assert curve["risk"]["0.5"] == 0.5
    assert curve["risk"]["1"] == 0.5
    # Scores that are all alike tell nothing: the risk is the mean at every coverage.
    flat = risk_coverage(np.zeros(4), np.ones(4, bool), wrong)
    assert set(flat["risk"].values()) == {0.5}
    assert flat["area"] == 0.5


def test_a_coverage_is_at_least_what_is_asked_for():
    wrong = np.array([False, True, False])
    risk = risk_coverage(np.array([0.9, 0.8, 0.7]), np.ones(3, bool), wrong)["risk"]
    assert risk["0.5"] == 1 / 2  # of two pairs, as one of three is too few


def test_a_score_that_is_no_number_comes_last():
    curve = risk_curve(np.array([np.nan, 0.5]), np.ones(2, bool), np.array([True, False]))
    np.testing.assert_array_equal(curve, [0, 1 / 2])


def test_rates_of_success():
    errors = [[0, 0, 0]] * 8 + [[9, 0, 0]] * 2
    f = figures(rows(errors, success=np.array([True] * 6 + [False] * 2 + [True, False])))
    assert f["rejected_good"] == 0.25
    assert f["flagged_gross"] == 0.5


def test_calibration_of_a_known_covariance():
    rng = np.random.default_rng(0)
    sigma = np.array([0.1, 0.2, 0.5])

    def gaussian(fixed, moving):
        n = len(moving)
        claimed = np.broadcast_to(np.diag(sigma**2 * [1, 4, 0.25]), (n, 3, 3))
        return answer(moving[:, 0, 0] + sigma * rng.normal(size=(n, 3)), covariance=claimed)

    bound = np.broadcast_to(sigma**2 / 4, (3840, 3))
    f = figures(evaluate(gaussian, suite_data(bound=bound, spec="cifar10+noise10"), 256))
    # The mean of 3,840 squared normal draws has a standard error of 2.3%.
    ratio = [f["calibration"][p] for p in ("tx", "ty", "theta")]
    np.testing.assert_allclose(ratio, [1, 1 / 4, 4], rtol=0.1)
    ratio = [f["cramer_rao"][p] for p in ("tx", "ty", "theta")]
    np.testing.assert_allclose(ratio, 2, rtol=0.05)
    assert f["calibration"]["pairs"] == f["cramer_rao"]["pairs"] == 3840


def test_what_is_told_of_good_answers_is_not_changed_by_a_gross_one():
    errors, variance = [[0.1, 0.2, 0.5], [0.3, -0.1, -1.0], [9, 0, 0]], np.ones((3, 3))
    variance[2] = 1e-12  # sure of it, and nothing makes the pair hard
    three = rows(errors, variance=variance, bound=variance)
    two = rows(errors[:2], variance=variance[:2], bound=variance[:2])
    assert figures(three)["gross"] == 1 / 3
    for name in ("calibration", "cramer_rao"):
        assert figures(three)[name] == figures(two)[name]
        assert figures(three)[name]["pairs"] == 2


def test_calibration_leaves_out_variances_that_are_none():
    variance = np.array([[1.0, 1, 4], [0, 1, 1], [np.inf, 1, 1], [1, 1, 1]])
    ratio = calibration(np.array([[1.0, 2, 2]] * 4), variance)
    assert ratio == {"pairs": 2, "tx": 1.0, "ty": 4.0, "theta": 2.5}


def test_cramer_rao_ratio_leaves_out_the_hopeless():
    errors = np.array([[1.0, 1, 1], [3, 1, 1], [99, 99, 99]])
    bound = np.array([[1.0, 1, 0.25], [4, 1, 0.25], [np.inf, 1, 1]])
    ratio = cramer_rao_ratio(errors, bound)
    assert ratio["pairs"] == 2
    np.testing.assert_allclose([ratio["tx"], ratio["ty"], ratio["theta"]], [np.sqrt(2), 1, 2])


def test_times_are_positive_and_small_sets_suffice():
    time = measure_time(oracle, suite_data(20), repeats=3)
    assert time["seconds"] > 0
    assert time["pairs_per_second"] > 0
    assert time["best_batch"] in (1, 16)


def test_an_answer_is_timed_until_all_of_it_is_there(monkeypatch):
    now = [0]

    class Awaited:
        def block_until_ready(self):
            now[0] += 7

    def estimator(fixed, moving):
        now[0] += 2
        return answer(moving[:, 0, 0], score=Awaited())

    monkeypatch.setattr(harness, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    data = suite_data(1)
    assert harness._seconds(estimator, data.fixed, data.moving) == 9


@pytest.mark.parametrize(("on_cpu", "largest"), [(True, 16), (False, 4096)])
def test_an_accelerator_is_timed_with_as_many_pairs_as_fit(monkeypatch, on_cpu, largest):
    asked = set()

    def estimator(fixed, moving):
        asked.add(len(fixed))
        return oracle(fixed, moving)

    monkeypatch.setattr(harness, "runs_on_cpu", lambda: on_cpu)
    monkeypatch.setattr(harness, "pairs_that_fit", lambda shape: 8192)
    measure_time(estimator, suite_data(20), repeats=3)
    assert max(asked) == largest


def test_everything_but_time_comes_back_from_the_raw_rows(tmp_path):
    rng = np.random.default_rng(1)

    def noisy(fixed, moving):
        n = len(moving)
        return answer(
            moving[:, 0, 0] + rng.normal(size=(n, 3)),
            score=rng.uniform(size=n),
            success=rng.uniform(size=n) < 0.9,
            found=rng.uniform(size=n) < 0.8,
            covariance=np.broadcast_to(np.eye(3), (n, 3, 3)),
        )

    bound = rng.uniform(size=(200, 3)).astype(np.float32)
    bound[3] = np.inf
    data = suite_data(200, "cifar10+noise10", bound)
    both = [evaluate(noisy, data, 64, "noisy"), evaluate(oracle, suite_data(50), 64, 'a,b"c')]
    report.write_rows(tmp_path / "rows.csv", both)
    back = report.read_rows(tmp_path / "rows.csv")
    assert [figures(r) for r in back] == [figures(r) for r in both]
    for read, made in zip(back, both, strict=True):
        np.testing.assert_array_equal(read.estimate, made.estimate)
        np.testing.assert_array_equal(read.score, made.score)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="not raw rows"):
        report.read_rows(tmp_path / "other.csv")


def test_files_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "out.json"
    report.write_json(path, [{"a": float("inf"), "b": 1.5}], {"seed": 1})
    before = path.read_text()
    assert '"a": null' in before
    with pytest.raises(TypeError):
        report.write_json(path, [{"a": object()}], {})
    assert path.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"]


def test_provenance_names_what_a_number_depends_on():
    origin = report.provenance(seed=3)
    assert origin["seed"] == 3
    assert origin["hardware"]["platform"]
    assert {"python", "jax", "numpy"} <= set(origin["versions"])
