"""An alignment known beforehand in place of the search."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.geometry import RigidTransform
from jaxreg.registration import register, register_batch
from jaxreg.result import Doubt
from tests.compilation_support import quickly_compiled
from tests.registration_support import (
    COUNT,
    SIZE,
    are_gross,
    assert_finite,
    errors,
    photo_pairs,
    repeated,
    texture,
)
from tests.tolerances import REGISTERED, REGISTERED_UNIT

IMAGE = np.zeros((SIZE, SIZE, 3), np.float32)
IDENTITY = RigidTransform.identity()


def beside(truth, shift, turn):
    """So many px and degrees off a truth, in directions that differ."""
    towards = np.random.default_rng(0).uniform(0, 2 * np.pi, truth.batch_shape)
    sign = np.where(towards < np.pi, 1, -1)
    parameters = truth.tx + shift * np.cos(towards), truth.ty + shift * np.sin(towards)
    return RigidTransform(*parameters, truth.theta + turn * sign)


@pytest.mark.parametrize(("shift", "turn"), [(0.0, 0.0), (SIZE / 16, 10.0)])
@quickly_compiled()
def test_the_truth_is_found_from_nearby(shift, turn):
    pairs = photo_pairs()
    result = register_batch(pairs.fixed, pairs.moving, initial=beside(pairs.transform, shift, turn))
    shifts, turns = errors(result.transform, pairs.transform)
    assert shifts.max() < REGISTERED[0]
    assert turns.max() < REGISTERED[1]
    assert result.success.all()


def test_what_is_far_off_is_not_believed():
    pairs = photo_pairs()
    result = register_batch(
        pairs.fixed, pairs.moving, initial=beside(pairs.transform, SIZE / 3, 60.0)
    )
    assert_finite(result)
    missed = are_gross(result.transform, pairs.transform)
    assert missed.mean() > 0.5
    assert not (missed & np.asarray(result.success)).any()


@pytest.mark.parametrize("turn", [0.0, 180.0])
def test_it_decides_where_several_alignments_fit(turn):
    half = texture((SIZE, SIZE, 3))
    image = (half + np.rot90(half, 2)) / 2
    stack = np.repeat(image[None], COUNT, 0)
    result = register_batch(stack, stack, initial=RigidTransform(0.5, -0.5, turn + 4.0))
    assert max(np.max(e) for e in errors(result.transform, repeated(0, 0, turn))) < REGISTERED_UNIT
    assert result.success.all()


def test_it_does_not_vouch_for_what_the_images_leave_open():
    y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    edge = np.where(x > 2, 200.0, 0.0)
    disc = lambda dx, dy: 200 * np.clip(10 - np.hypot(x - dx, y - dy), 0, 1)  # noqa: E731
    pairs = {
        Doubt.DETAIL_MISMATCH: np.random.default_rng(0).uniform(0, 255, (2, SIZE, SIZE)),
        Doubt.AMBIGUOUS: (disc(0.0, 0.0), disc(1.3, -0.6)),
        Doubt.UNDETERMINED: (edge, edge),
        Doubt.NOT_FINITE: (edge, np.nan * edge),
    }
    fixed, moving = (np.resize(v, (COUNT, SIZE, SIZE)) for v in zip(*pairs.values(), strict=True))
    colour = lambda v: np.repeat(v[..., None], 3, -1)  # noqa: E731
    result = register_batch(colour(fixed), colour(moving), initial=IDENTITY)
    assert_finite(result)
    assert not result.success.any()
    for doubt, one in zip(pairs, result, strict=False):
        assert doubt in Doubt(int(one.doubts))


def test_swapping_the_images_and_inverting_it_gives_the_inverse():
    pairs = photo_pairs()
    known = beside(pairs.transform, 1.0, 4.0)
    there = register_batch(pairs.fixed, pairs.moving, initial=known).transform
    back = register_batch(pairs.moving, pairs.fixed, initial=known.inverse()).transform
    shifts, turns = errors(back.inverse(), there)
    assert shifts.max() < REGISTERED[0]
    assert turns.max() < REGISTERED[1]


@quickly_compiled()
def test_it_may_be_traced_and_mapped():
    stack = jax.ShapeDtypeStruct((COUNT, SIZE, SIZE, 3), "float32")
    many = jax.tree.map(lambda v: jax.ShapeDtypeStruct((COUNT,), "float32"), IDENTITY)
    for call in (register_batch, jax.vmap(lambda f, m, initial: register(f, m, initial=initial))):
        shapes = jax.eval_shape(
            lambda f, m, t, call=call: call(f, m, initial=t), stack, stack, many
        )
        assert shapes.covariance.shape == (COUNT, 3, 3)
    mask = jnp.ones((SIZE, SIZE), bool)
    masked = lambda t: register(IMAGE, IMAGE, initial=t, moving_mask=mask).score  # noqa: E731
    assert jax.eval_shape(masked, IDENTITY).shape == ()


@pytest.mark.parametrize(
    ("initial", "options", "message"),
    [
        ((1.0, 2.0, 3.0), {}, "initial must be a RigidTransform, got tuple"),
        (repeated(0, 0, 0), {}, r"initial must be one transform, got a batch of shape \(64,\)"),
        (RigidTransform(0.0, np.nan, 0.0), {}, "initial must be finite"),
        (IDENTITY, {"max_rotation": 20.0}, "limit the search, which initial replaces"),
        (IDENTITY, {"method": "compact"}, "initial and masks are for method 'direct'"),
    ],
)
def test_what_is_unfit_is_refused(initial, options, message):
    with pytest.raises(ValueError, match=message):
        register(IMAGE, IMAGE, initial=initial, **options)


def test_a_batch_of_another_length_is_refused():
    with pytest.raises(
        ValueError, match=r"one transform or a batch of 2, got a batch of .*\(64,\)"
    ):
        register_batch(np.stack([IMAGE] * 2), np.stack([IMAGE] * 2), initial=repeated(0, 0, 0))
