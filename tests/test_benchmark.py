"""Counting work, timing in turn, the naive versions, and a dry run of the benchmark."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from baselines.phase_correlation import fft
from experiments import benchmark, benchmark_report, cases, naive, timing
from experiments.floor import Rates, Work, count_operations, work_of
from experiments.timing import PairByPair, Seconds, host_memory, interleave
from jaxreg.evaluation.protocol import build_suite
from jaxreg.evaluation.report import provenance
from jaxreg.geometry import RigidTransform
from jaxreg.methods import constant
from jaxreg.models.lstm import LSTMConfig
from jaxreg.result import Registration
from tests.compilation_support import quickly_compiled
from tests.tolerances import FLOAT32_NETWORK
from tests.training_support import TINY_COMPACT


def operations(function, *arguments):
    return count_operations(jax.make_jaxpr(function)(*arguments))


@pytest.mark.parametrize(
    ("function", "shape", "expected"),
    [
        (lambda x: x @ x, (8, 8), 2 * 8**3),
        (lambda x: jnp.einsum("bij,bjk->bik", x, x), (3, 4, 4), 3 * 2 * 4**3),
        (lambda x: jnp.sin(x) + 1.0, (10,), 20),
        (lambda x: x.reshape(-1)[::-1].astype(jnp.float16), (4, 5), 0),
        (lambda x: x.sum(), (6, 7), 42),
        (lambda x: jnp.fft.fft2(x.astype(jnp.complex64)), (2, 8, 8), 2 * 64 * 5 * 6),
        (jnp.fft.rfft2, (2, 8, 8), 2 * 64 * 2.5 * 6),
        (lambda x: jax.lax.scan(lambda c, r: (c + r, None), x[0], x)[0], (5, 3), 15),
        (lambda x: jax.lax.cond(x[0] > 0, jnp.sin, lambda y: y, x), (9,), 1),
        (lambda x: jax.lax.while_loop(lambda y: y[0] < 9, lambda y: y + 1, x), (4,), 5),
        (jax.jit(lambda x: jax.checkpoint(jnp.sin)(x)), (4,), 4),
        (lambda x: jax.nn.silu(x) * 0 + jax.nn.relu(x), (4,), None),
    ],
)
def test_operations_of_known_programs(function, shape, expected):
    counted = operations(function, jnp.ones(shape))
    assert counted > 0 if expected is None else counted == expected


def test_a_convolution_counts_two_a_term():
    image, kernel = jnp.ones((2, 9, 9, 6)), jnp.ones((3, 3, 3, 8))  # two groups

    def convolve(x, w):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, w, (1, 1), "VALID", dimension_numbers=numbers, feature_group_count=2
        )

    assert operations(convolve, image, kernel) == 2 * (2 * 7 * 7 * 8) * 3 * 3 * 3


def test_a_straight_program_counts_as_xla_counts_it():
    network = LSTMConfig(hidden=64).build(nnx.Rngs(0))
    vectors = jnp.ones((2, 4, 3072))
    counted = operations(lambda a, b: network.lstm(a, b), *vectors)
    xla = jax.jit(lambda a, b: network.lstm(a, b)).lower(*vectors).cost_analysis()
    assert counted == pytest.approx(xla["flops"], rel=0.01)


def test_bytes_are_inputs_and_results_and_the_floor_is_the_larger_time():
    half = jax.ShapeDtypeStruct((10, 10), jnp.bfloat16)
    work = work_of(lambda a, b: (a @ b).astype(jnp.float32), half, half)
    assert work == Work(2000.0, 800)
    rates = Rates(copy=100.0, read=200.0, product={"float32": 1000.0}, call=0.0)
    assert rates.floor(work, "float32") == (4.0, "memory")
    assert rates.floor(work * 1.0, "float32")[1] == "memory"
    assert rates.floor(Work(9000.0, 8.0), "float32") == (9.0, "arithmetic")
    with pytest.raises(ValueError, match="no rate for TF32: there are float32"):
        rates.floor(work, "TF32")


def test_functions_take_turns_and_see_the_same_pairs():
    seen = []
    images = np.arange(3), np.arange(3)
    record = [lambda f, _, name=name: seen.append((name, int(f))) for name in "ab"]
    calls = [PairByPair(function, *images) for function in record]
    times = interleave(calls, rounds=2, turn=0.0)
    assert [name for name, _ in dict.fromkeys(seen)] == ["a", "b", "b", "a"]
    assert {f for name, f in seen if name == "a"} == {f for name, f in seen if name == "b"}
    assert [t.calls for t in times] == [2, 2]
    assert all(t.minimum <= t.quiet and t.minimum <= t.median for t in times)


@pytest.fixture
def take(monkeypatch):
    """Lets so many seconds pass for whatever is timed."""
    now = 0.0

    def passing(seconds):
        nonlocal now
        now += seconds

    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now))
    return passing


def test_a_turn_ends_with_its_time_or_with_enough_calls(take):
    # The first call of each turn does not count, unless it fills a later turn than the first.
    turns = ((12.0, 5.0, 6.0), (1.0, 4.0, 1.0, 2.0), (13.0,))
    calls = iter(sum(turns, ()))
    (seconds,) = interleave([lambda: take(next(calls))], rounds=3, turn=10.0, most=3)
    medians, fastest = (5.5, 2.0, 13.0), (5.0, 1.0, 13.0)
    assert seconds == Seconds(np.median(medians), np.median(fastest), minimum=1.0, calls=6)
    assert next(calls, None) is None


def test_every_pair_counts_alike_however_many_calls_fit_into_its_turn(take):
    durations = np.array([2.0] * 5 + [20.0] * 7)
    pairs = PairByPair(lambda duration, _: take(duration), durations, durations)
    (seconds,) = interleave([pairs], rounds=12, turn=100.0)
    assert seconds.median == seconds.quiet == np.median(durations)


def test_a_pair_is_seen_once_before_it_is_timed_however_long_that_takes(take):
    seen = []

    def register(pair, _):
        take(20.0 if pair in seen else 30.0)
        seen.append(pair)

    pairs = PairByPair(register, np.arange(3), np.arange(3))
    (seconds,) = interleave([pairs], rounds=3, turn=10.0)
    assert seconds == Seconds(20.0, 20.0, 20.0, calls=3)
    assert seen == [0, 0, 1, 1, 2, 2]


def test_host_memory_sees_a_large_array():
    grown = host_memory(lambda: np.ones(2**24).sum())
    if grown is None:
        pytest.skip("this system does not tell")
    assert 100e6 < grown < 300e6


@pytest.mark.parametrize("suite", ["random@16", "scene@24"])
def test_the_naive_loop_gives_the_sweeps_answers(suite):
    data = build_suite(suite, 4)
    loop = [naive.sweep(f, m) for f, m in zip(data.fixed, data.moving, strict=True)]
    sweep = fft(jnp.asarray(data.fixed), jnp.asarray(data.moving)).transform.as_array()
    np.testing.assert_array_equal(np.asarray(sweep), np.stack(loop))


def test_scanned_cells_give_the_networks_outputs():
    network = LSTMConfig(hidden=16, layers=2).build(nnx.Rngs(0))
    vectors = jax.random.normal(jax.random.key(1), (2, 3, 3072))
    expected = network.lstm(*vectors)
    np.testing.assert_allclose(naive.ScannedLSTM(network)(*vectors), expected, atol=FLOAT32_NETWORK)


def one_pair(fixed, moving):
    zero = jnp.mean(fixed - moving) * 0.0
    return Registration(RigidTransform(zero, zero, zero), zero, zero > 1)


def small_compact(size):
    return dataclasses.replace(TINY_COMPACT, image_size=size)


@pytest.fixture
def quick_direct(monkeypatch):
    """The direct method takes long to compile; here another takes its place."""
    monkeypatch.setattr(cases, "align", one_pair)
    monkeypatch.setattr(cases, "register", one_pair)
    monkeypatch.setattr(cases, "register_batch", constant)
    monkeypatch.setattr(cases, "image_pairs", lambda size, count: pictures(size, count))
    monkeypatch.setattr(cases, "CompactConfig", small_compact)
    monkeypatch.setitem(benchmark._QUICK, "rounds", 1)


def pictures(size, count):
    data = build_suite(f"random@{size}", count)
    return data.fixed, data.moving


@quickly_compiled()
def test_dry_run_times_everything_and_its_report_can_be_made_again(tmp_path, quick_direct, capsys):
    command = ["benchmark", "--quick", "--batches=1", f"--results={tmp_path}"]
    cache = jax.config.jax_enable_compilation_cache
    try:
        assert benchmark.main(command) == 0
    finally:
        jax.config.update("jax_enable_compilation_cache", cache)
    (path,) = tmp_path.glob("benchmark_quick_*.json")
    record = json.loads(path.read_text())
    assert list(record["groups"]) == list(benchmark.groups())
    assert str(tmp_path) not in path.read_text()
    methods = {row["method"] for group in record["groups"].values() for row in group["rows"]}
    assert {"register", "register_batch", "fft sweep", "naive fft loop", "LSTM", "LSTM, scanned",
            "compact", "training, lstm512_cifar10", "import jaxreg"} <= methods  # fmt: skip
    for group in record["groups"].values():
        for row in group["rows"]:
            assert row["median"] > 0
            assert (row["floor"] > 0) == (row["precision"] != "")
    text = path.with_suffix(".md").read_text()
    assert "x the floor" in text
    assert "the sweep's answers on 2 of 2 pairs" in text
    assert path.with_suffix(".png").stat().st_size > 1000
    path.with_suffix(".md").unlink()
    capsys.readouterr()
    assert benchmark.main([*command, "--only_render"]) == 0
    assert path.with_suffix(".md").read_text() == text == capsys.readouterr().out[:-1]


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--groups=nothing", "there are direct"),
        ("--sizes=4", "whole numbers from 8 on"),
        ("--batches=many", "whole numbers from 1 on"),
        ("--training=nothing", "there are quickstart"),
        ("--only_render", "nothing is recorded"),
        ("--rounds=0", "rounds"),
    ],
)
def test_what_cannot_be_done_is_said(flag, said, tmp_path, capsys):
    assert benchmark.main(["benchmark", "--quick", f"--results={tmp_path}", flag]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_records_of_another_machine_are_not_lost_to_a_part_of_a_run(tmp_path):
    path, here = tmp_path / "record.json", provenance()["hardware"]
    there = here | {"processor": "abacus"}

    def record(**machines):
        groups = {name: {"provenance": {"hardware": h}} for name, h in machines.items()}
        path.write_text(json.dumps({"groups": groups}))

    record(lstm=here, sweep=here)
    assert set(benchmark._recorded(path, ["lstm"])["groups"]) == {"lstm", "sweep"}
    record(lstm=there, sweep=here)
    assert set(benchmark._recorded(path, ["lstm"])["groups"]) == {"sweep"}
    with pytest.raises(ValueError, match=r"lstm in .* were recorded on another machine"):
        benchmark._recorded(path, ["sweep"])


def test_ratios_compare_rows_of_one_size():
    def row(method, size, batch, median):
        return {"method": method, "size": size, "batch": batch, "median": median, "quiet": median}

    rows = [row("naive fft loop", 32, 1, 0.3), row("fft sweep", 32, 1, 0.001),
            row("fft sweep", 96, 1, 0.01), row("register_batch, growth", 32, 10, 1.0),
            row("register_batch, growth", 32, 1000, 120.0)]  # fmt: skip
    sweep, growth = benchmark_report.ratios(rows)
    assert sweep["median"] == pytest.approx(300)
    assert "32x32" in sweep["what"]
    assert growth["quiet"] == pytest.approx(1.2)
