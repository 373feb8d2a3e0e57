"""Products in the forms that CPUs are fast at, against NumPy's."""

import numpy as np
import pytest

from jaxreg.compute.products import (
    apply_separable,
    dots,
    mean_once,
    mean_over_channels,
    mix,
    separable,
    times,
    weighted_sum,
)
from tests.tolerances import FLOAT32_CORRELATION

RNG = np.random.default_rng(0)


def draw(*shape):
    return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("count", [1, 4])
def test_few_vectors_are_multiplied_as_by_one_product(count):
    matrix, vectors = draw(5, 40) / 40, draw(count, 40)
    np.testing.assert_allclose(times(matrix, vectors), vectors @ matrix.T, atol=FLOAT32_CORRELATION)


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (2, 3)])
def test_planes_are_mixed_as_by_one_product(shape):
    weights, planes = draw(*shape), draw(shape[1], 40)
    np.testing.assert_allclose(mix(weights, planes), weights @ planes, atol=FLOAT32_CORRELATION)


def test_separable_products_of_planes_and_of_channels_are_the_same():
    rows, columns, planes = draw(4, 9) / 9, draw(5, 7) / 7, draw(3, 9, 7)
    expected = rows @ planes @ columns.T
    np.testing.assert_allclose(separable(rows, planes, columns), expected, atol=FLOAT32_CORRELATION)
    image = apply_separable(rows, np.moveaxis(planes, 0, -1), columns)
    np.testing.assert_allclose(image, np.moveaxis(expected, 0, -1), atol=FLOAT32_CORRELATION)


@pytest.mark.parametrize("shape", [(40,), (5000,), (3, 5000)])
def test_sums_of_products_few_or_many(shape):
    a, b = draw(*shape) / shape[-1], draw(*shape)
    np.testing.assert_allclose(dots(a, b), (a * b).sum(-1), atol=FLOAT32_CORRELATION)


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_summed_by_weight(channels):
    image, weight = draw(40, channels) / 40, draw(40)
    np.testing.assert_allclose(
        weighted_sum(image, weight), weight @ image, atol=FLOAT32_CORRELATION
    )


@pytest.mark.parametrize("mean", [mean_over_channels, mean_once])
@pytest.mark.parametrize("shape", [(6, 5, 3), (48, 40, 3), (5000, 1)])
def test_channels_are_averaged(mean, shape):
    image = draw(*shape)
    np.testing.assert_allclose(mean(image), image.mean(-1), atol=FLOAT32_CORRELATION)
