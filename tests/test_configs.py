"""Configurations: their names, their fields on the command line, and what may change in a run."""

import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest
from flax import nnx

from jaxreg.disturbances import Disturbance
from jaxreg.models.compact import CompactConfig
from jaxreg.models.lstm import LSTMConfig
from jaxreg.training.configs import CONFIGS, TrainConfig, changed_fields
from jaxreg.training.devices import data_mesh
from jaxreg.training.state import abstract_state, fresh_state, learning_rate_schedule

SMALL = TrainConfig(network=LSTMConfig(hidden=8))


@pytest.mark.parametrize("name", CONFIGS)
def test_named_configurations_build_and_survive_json(name):
    config = CONFIGS[name]
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.eval_pairs > 0


def test_the_papers_lstm_has_its_size_and_recipe():
    config = CONFIGS["lstm_cifar10_paper"]
    weights = jax.tree.leaves(abstract_state(config, data_mesh(1)).weights)
    layers = 12_000 * (3072 + 3000 + 1) + 2 * 12_000 * (3000 + 3000 + 1)
    assert sum(w.size for w in weights) == layers + 3 * 3001 == 216_909_003
    assert (config.batch_size, config.schedule, config.translation_weight) == (1, "constant", 17.0)


def test_a_row_of_metrics_covers_as_many_pairs_in_the_papers_recipe():
    ours, papers = (CONFIGS[name] for name in ("lstm_cifar10", "lstm_cifar10_paper"))
    pairs = [config.steps_per_dispatch * config.batch_size for config in (ours, papers)]
    assert pairs == pytest.approx([1024, 1024], rel=0.05)
    for every in (papers.eval_every, papers.save_every):
        assert every % papers.steps_per_dispatch == 0  # else some rows are shorter


def test_overrides():
    config = SMALL.override(
        [
            "--batch_size=32",
            "--learning_rate=3e-4",
            "--network.hidden=16",
            "--network.output_scale=5,5,180",
            "--disturbance.noise=5",
            "--data=cifar10,photos",
            "--schedule=cosine",
            "--init_from=runs/a=b",
        ]
    )
    assert config.batch_size == 32
    assert config.learning_rate == 3e-4
    assert config.network == LSTMConfig(hidden=16, output_scale=(5.0, 5.0, 180.0))
    assert config.disturbance == Disturbance(noise=5.0)
    assert config.data == ("cifar10", "photos")
    assert config.schedule == "cosine"
    assert config.init_from == "runs/a=b"


def test_another_network_by_name():
    assert CONFIGS["lstm_stl10"].override(["--network=lstm"]).network == LSTMConfig()
    config = CONFIGS["lstm_stl10"].override(["--network=compact", "--network.width=8"])
    assert config.network == CompactConfig(width=8)


def test_overrides_are_checked_together():
    for both in itertools.permutations(["--batch_size=1", "--scene_share=0"]):
        config = CONFIGS["compact32"].override(both)
        assert (config.batch_size, config.scene_pairs) == (1, 0)
    with pytest.raises(ValueError, match=r"scene_share=0\.45 of batch_size=1 makes 0 pairs of it"):
        CONFIGS["compact32"].override(["--batch_size=1"])


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--batchsize=3", r"unknown field 'batchsize'; did you mean batch_size.*learning_rate"),
        ("--image_size=96", r"did you mean network\.image_size"),
        ("--network.hiden=3", r"did you mean network\.hidden"),
        ("--batch_size.x=3", "has no fields of its own"),
        ("--batch_size=many", "batch_size must be a whole number, got 'many'"),
        ("--batch_size=1.5", "batch_size must be a whole number, got '1.5'"),
        ("--batch_size=0", "batch_size must be at least 1, got 0"),
        ("--learning_rate=fast", "learning_rate must be a number"),
        ("--learning_rate=nan", "learning_rate must be above 0"),
        ("--schedule=linear", "schedule must be one of constant, cosine, got 'linear'"),
        ("--interpolation=lanczos", "interpolation must be one of nearest"),
        ("--interpolation=nearest", "interpolation must not be nearest"),
        ("--network.output_scale=5,5", "takes 3 values"),
        ("--network=lstn", "network must be one of lstm"),
        ("--seed=99999999999999999999", "seed must be below"),
        ("--data=", "data must name at least one"),
        ("--batch_size", "expected --field=value, got '--batch_size'"),
        ("batch_size=3", "expected --field=value"),
        ("--scene_share=0.001", r"scene_share=0\.001 of batch_size=64 makes 0 pairs"),
        ("--scene_share=0.999", r"scene_share=0\.999 of batch_size=64 makes 64 pairs"),
    ],
)
def test_bad_overrides_are_named(argument, message):
    with pytest.raises(ValueError, match=message):
        SMALL.override([argument])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": "8"}, "batch_size must be a whole number, got '8'"),
        ({"batch_size": True}, "batch_size must be a whole number, got True"),
        ({"depth": 3}, "unknown field 'depth'"),
        ({"network": {"network": "lstm", "depth": 3}}, "depth"),
        ({"network": {"network": "lstm", "hidden": "512"}}, "hidden must be a whole number"),
    ],
)
def test_bad_dictionaries_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig.from_dict(SMALL.to_dict() | values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "network is missing"),
        ([], r"must be a dictionary of fields, got \[\]"),
        (None, "must be a dictionary of fields, got None"),
    ],
)
def test_what_is_no_configuration_is_told(values, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig.from_dict(values)


def test_what_may_change_in_a_run():
    cosine = dataclasses.replace(SMALL, schedule="cosine")

    def changes(old, **new):
        return changed_fields(old, dataclasses.replace(old, **new))

    assert changes(SMALL, steps=5, save_every=3, eval_every=7, steps_per_dispatch=1) == []
    assert changes(cosine, save_every=3) == []
    assert changes(cosine, steps=5) == ["steps: 10000 -> 5"]
    assert changes(SMALL, seed=1, batch_size=2) == ["batch_size: 64 -> 2", "seed: 0 -> 1"]
    assert changes(SMALL, network=LSTMConfig(hidden=9)) == ["network.hidden: 8 -> 9"]


def test_pairs_have_another_key_than_any_weight():
    config = dataclasses.replace(SMALL, seed=3)
    weights = nnx.Rngs(config.seed)
    keys = [np.asarray(jax.random.key_data(weights.params())) for _ in range(500)]
    pairs = np.asarray(jax.random.key_data(fresh_state(config, {}, {}).key))
    assert not (np.stack(keys) == pairs).all(-1).any()


def test_schedules():
    def rates(**fields):
        schedule = learning_rate_schedule(dataclasses.replace(SMALL, **fields))
        return [float(schedule(step)) for step in range(20)]

    constant = rates(learning_rate=0.5)
    assert constant == [0.5] * 20
    rising = rates(learning_rate=0.5, warmup_steps=5)
    assert rising == pytest.approx([0.1, 0.2, 0.3, 0.4] + [0.5] * 16)
    cosine = rates(learning_rate=0.5, warmup_steps=5, schedule="cosine", steps=20)
    assert cosine[:6] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.5])
    assert all(a > b for a, b in itertools.pairwise(cosine[5:]))
    assert 0 < cosine[-1] < 0.01
    short = rates(learning_rate=0.5, warmup_steps=1000, schedule="cosine", steps=20)
    assert max(short) == pytest.approx(0.5)
