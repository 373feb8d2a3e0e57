"""Grouped convolution with a fast weight gradient on CPU, and spread over several devices.

XLA's own weight gradient of a grouped convolution on CPU takes tens of times as long as the
forward pass. Here, on CPU only, it is computed as in im2col, one kernel tap at a time: a batch of
small matrix products, for each group the inputs under the tap times the gradient of the outputs.
Everything else is XLA's own, and on an accelerator so is the weight gradient.

If a batch is spread over devices, XLA gathers all of it on each of them for a grouped convolution.
So where `jax.set_mesh` has set a mesh, each device is told to convolve its own part.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

Padding = tuple[tuple[int, int], tuple[int, int]]


def convolution(
    images: jax.Array, kernel: jax.Array, stride: int, padding: Padding, groups: int = 1
) -> jax.Array:
    """Convolve in two dimensions (cross-correlation, as usual in networks), by XLA.

    Args:
      images: ``(N, H, W, C)``.
      kernel: ``(KH, KW, C // groups, O)``; consecutive outputs belong to one group.
      stride: on both axes, in pixels.
      padding: zeros added before and after each axis; explicit, because ``"SAME"`` pads strided
        convolutions differently from torch.
      groups: number of groups of channels, which are convolved separately.

    Returns:
      ``(N, H', W', O)``.
    """
    return jax.lax.conv_general_dilated(
        images,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def grouped_convolution(
    images: jax.Array, kernel: jax.Array, stride: int, padding: Padding, groups: int
) -> jax.Array:
    """`convolution` with a fast weight gradient on CPU; reverse mode and first order only.

    If a mesh is set and its devices divide the batch evenly, each convolves its part.
    """
    mesh = jax.sharding.get_abstract_mesh()
    convolve = lambda images, kernel: _convolution(images, kernel, stride, padding, groups)  # noqa: E731
    if mesh.empty or mesh.size == 1 or len(images) % mesh.size or not mesh.are_all_axes_auto:
        return convolve(images, kernel)
    part = PartitionSpec(mesh.axis_names)
    shared = jax.shard_map(
        convolve, in_specs=(part, PartitionSpec()), out_specs=part, check_vma=False
    )
    return shared(images, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _convolution(
    images: jax.Array, kernel: jax.Array, stride: int, padding: Padding, groups: int
) -> jax.Array:
    return convolution(images, kernel, stride, padding, groups)


def _forward(
    images: jax.Array, kernel: jax.Array, stride: int, padding: Padding, groups: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return convolution(images, kernel, stride, padding, groups), (images, kernel)


def _backward(
    stride: int,
    padding: Padding,
    groups: int,
    saved: tuple[jax.Array, jax.Array],
    gradient: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    images, kernel = saved

    def of_images(images: jax.Array) -> jax.Array:
        return convolution(images, kernel, stride, padding, groups)

    def native(images: jax.Array, gradient: jax.Array) -> jax.Array:
        _, vjp = jax.vjp(lambda k: convolution(images, k, stride, padding, groups), kernel)
        return vjp(gradient)[0]

    def by_taps(images: jax.Array, gradient: jax.Array) -> jax.Array:
        return kernel_gradient(images, gradient, kernel.shape, stride, padding, groups)

    image_gradient = jax.vjp(of_images, images)[1](gradient)[0]
    return image_gradient, jax.lax.platform_dependent(images, gradient, cpu=by_taps, default=native)


_convolution.defvjp(_forward, _backward)


def kernel_gradient(
    images: jax.Array,
    gradient: jax.Array,
    kernel_shape: tuple[int, ...],
    stride: int,
    padding: Padding,
    groups: int,
) -> jax.Array:
    """Compute the gradient of `convolution` with respect to its kernel, by matrix products.

    Args:
      images: ``(N, H, W, C)``, the convolution's input.
      gradient: ``(N, H', W', O)``, the gradient with respect to its output.
      kernel_shape: ``(KH, KW, C // groups, O)``, the shape of the result.
      stride: as in `convolution`.
      padding: as in `convolution`.
      groups: as in `convolution`.
    """
    high, wide, inputs, outputs = kernel_shape
    padded = jnp.pad(images, ((0, 0), *padding, (0, 0)))
    rows, columns = gradient.shape[1:3]
    by_group = gradient.reshape(-1, groups, outputs // groups)
    taps = []
    for i in range(high):
        for j in range(wide):
            under = padded[
                :,
                i : i + (rows - 1) * stride + 1 : stride,
                j : j + (columns - 1) * stride + 1 : stride,
            ]
            taps.append(jnp.einsum("mgc,mgo->cgo", under.reshape(-1, groups, inputs), by_group))
    return jnp.stack(taps).reshape(kernel_shape)
