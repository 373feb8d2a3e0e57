"""Rigid transforms of the image plane, and the convention that the whole package follows.

x runs right and y runs down; ``(0, 0)`` is the centre of the top-left pixel. A transform
``(tx, ty, theta)`` (pixels, pixels, degrees) rotates about the image centre
``c = ((W - 1) / 2, (H - 1) / 2)`` and then shifts::

    p' = R(theta) (p - c) + c + t,    R = [[cos, -sin], [sin, cos]]  on (x, y)

Because y runs down, a positive ``theta`` turns the picture clockwise on the screen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxreg.compute.pytrees import as_one, on_host, part

Shape = tuple[int, ...]
Point = tuple[float, float]  # (x, y)
MOST_CHANNELS = 16  # an array with a longer last axis is more likely a stack of grey images
Real = float | np.number | np.ndarray | jax.Array  # `float` accepts those that are scalars


def wrap_degrees(theta: ArrayLike) -> jax.Array:
    """Wrap an angle in degrees into [-180, 180).

    >>> float(wrap_degrees(190.0))
    -170.0
    """
    theta = jnp.asarray(theta, jnp.float32)
    turns = jax.lax.stop_gradient(jnp.floor((theta + 180.0) / 360.0))
    wrapped = theta - 360.0 * turns
    # For an angle just below 180, adding 180 may round up to a whole turn.
    return jnp.where(wrapped < -180.0, wrapped + 360.0, wrapped)


def cos_sin_degrees(theta: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Compute cosine and sine of an angle in degrees, exact at multiples of 90.

    They must be exact so that a quarter turn moves pixels onto pixels, not next to them.

    >>> [float(v) for v in cos_sin_degrees(90.0)]
    [0.0, 1.0]
    """
    theta = jnp.asarray(theta, jnp.float32)
    quarter = jax.lax.stop_gradient(jnp.round(theta / 90.0))
    rest = jnp.deg2rad(theta - 90.0 * quarter)
    cos, sin = jnp.cos(rest), jnp.sin(rest)
    turn = quarter.astype(jnp.int32) % 4
    odd, behind = turn % 2 == 1, turn >= 2
    cos, sin = jnp.where(odd, -sin, cos), jnp.where(odd, cos, sin)
    # Adding 0.0 turns -0.0 into 0.0.
    return jnp.where(behind, -cos, cos) + 0.0, jnp.where(behind, -sin, sin) + 0.0


def as_points(points: ArrayLike | Sequence[float], name: str = "points") -> jax.Array:
    """Convert points ``(..., 2)`` of ``(x, y)`` to float32; ValueError for another shape."""
    points = jnp.asarray(points, jnp.float32)
    if points.ndim == 0 or points.shape[-1] != 2:
        raise ValueError(f"{name} must end in an axis of 2 (x, y), got shape {points.shape}")
    return points


def image_centre(shape: Shape) -> Point:
    """Centre ``(x, y)`` in pixels of an image of shape ``(H, W)`` or ``(H, W, C)``.

    >>> image_centre((32, 48))
    (23.5, 15.5)
    """
    if not isinstance(shape, tuple | list):
        kind = "an array" if hasattr(shape, "shape") else type(shape).__name__
        hint = "" if isinstance(shape, int | float) else "; pass image.shape"
        raise ValueError(f"shape must be (H, W) or (H, W, C), got {kind}{hint}")
    if not 2 <= len(shape) <= 3 or max(shape[2:], default=1) > MOST_CHANNELS:
        raise ValueError(f"shape must be (H, W) or (H, W, C) of one image, got {shape}")
    return (shape[1] - 1) / 2, (shape[0] - 1) / 2


def check_transform(transform: object, name: str) -> None:
    """Raise ValueError, with the argument's name, unless this is a `RigidTransform`."""
    if not isinstance(transform, RigidTransform):
        hint = "; pass its .transform" if hasattr(transform, "transform") else ""
        kind = type(transform).__name__
        raise ValueError(f"{name} must be a RigidTransform, got {kind}{hint}")


def _check_together(batch_shape: Shape, shape: Shape, name: str, what: str) -> None:
    """Raise ValueError, with the argument's name, if a shape does not broadcast with the batch."""
    try:
        np.broadcast_shapes(batch_shape, shape)
    except ValueError:
        raise ValueError(
            f"{name} must be {what} in the shape of the batch, {batch_shape}, or one for all, "
            f"got {shape} of them"
        ) from None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class RigidTransform:
    """A rotation about the image centre, followed by a shift; a pytree.

    Fields are scalars, or arrays of one shape for a batch of transforms; a scalar among arrays
    holds for the whole batch. Every method works on one transform and on batches, and under
    ``jit``, ``vmap`` and ``grad``. ``==`` and ``hash`` go by identity; to compare values, compare
    `as_array`.

    Attributes:
      tx: shift to the right, in pixels.
      ty: shift down, in pixels.
      theta: rotation in degrees, clockwise on the screen.

    >>> t = RigidTransform(tx=2.0, ty=-1.0, theta=90.0)
    >>> round_trip = t.compose(t.inverse())
    >>> float(round_trip.tx), float(round_trip.ty), float(round_trip.theta)
    (0.0, 0.0, 0.0)
    """

    tx: Real
    ty: Real
    theta: Real

    def __getitem__(self, index: Any) -> RigidTransform:
        """One or several transforms of a batch, by any index that an array takes."""
        len(self)  # TypeError unless it is a batch
        return part(self, index, self.batch_shape)

    def __iter__(self) -> Iterator[RigidTransform]:
        """Iterate over the transforms of a batch, fetched to the host unless it is traced."""
        count = len(self)
        return map(on_host(self).__getitem__, range(count))

    def __len__(self) -> int:
        """The number of transforms in a batch."""
        if not self.batch_shape:
            raise TypeError("one transform, not a batch of them, has no length and no index")
        return self.batch_shape[0]

    def __bool__(self) -> bool:
        """True, even for an empty batch, so that a truth value tells a transform from None."""
        return True

    @property
    def batch_shape(self) -> Shape:
        """The shape of the fields that are arrays; ``()`` for one transform.

        Raises:
          ValueError: the fields have different shapes.
        """
        shapes = {np.shape(v) for v in (self.tx, self.ty, self.theta)} - {()}
        if len(shapes) > 1:
            raise ValueError(
                "tx, ty and theta must have one shape, or be scalars, "
                f"got {', '.join(map(str, sorted(shapes)))}"
            )
        return shapes.pop() if shapes else ()

    @classmethod
    def identity(cls, batch_shape: Shape = ()) -> RigidTransform:
        """Make the transform that moves nothing, or a batch of it of ``batch_shape``."""
        zero = jnp.zeros(batch_shape, jnp.float32)
        return cls(zero, zero, zero)

    @classmethod
    def from_array(cls, parameters: ArrayLike) -> RigidTransform:
        """Make transforms from an array ``(..., 3)`` of ``(tx, ty, theta)``, of any real dtype.

        Raises:
          ValueError: the array has another shape.
        """
        parameters = jnp.asarray(parameters, jnp.float32)
        if parameters.ndim == 0 or parameters.shape[-1] != 3:
            raise ValueError(
                f"parameters must end in an axis of 3 (tx, ty, theta), got shape {parameters.shape}"
            )
        return cls(parameters[..., 0], parameters[..., 1], parameters[..., 2])

    def as_array(self) -> jax.Array:
        """``(..., 3)`` float32 array of ``(tx, ty, theta)``."""
        return _stacked(self._native())

    @classmethod
    def from_matrix(cls, matrix: ArrayLike, shape: Shape) -> RigidTransform:
        """Convert a rigid matrix on pixel coordinates to a transform; the inverse of `matrix`.

        Args:
          matrix: ``(..., 3, 3)`` or ``(..., 2, 3)``. Its 2x2 block should be a rotation; one with
            scale or shear gives the angle of the nearest rotation. The third row is not read.
          shape: ``(H, W)`` or ``(H, W, C)`` of one image.

        Raises:
          ValueError: the matrix has another shape, or (outside of ``jit``) its 2x2 block is a
            reflection or has no angle.

        >>> t = RigidTransform(3.0, -2.0, 30.0)
        >>> back = RigidTransform.from_matrix(t.matrix((32, 32)), (32, 32))
        >>> round(float(back.tx), 4), round(float(back.theta), 4)
        (3.0, 30.0)
        """
        m = jnp.asarray(matrix, jnp.float32)
        if m.shape[-2:] not in ((3, 3), (2, 3)):
            raise ValueError(f"matrix must be (..., 3, 3) or (..., 2, 3), got shape {m.shape}")
        block = m[..., :2, :2]
        if not isinstance(block, jax.core.Tracer):
            (a, b), (c, d) = np.moveaxis(np.asarray(block), (-2, -1), (0, 1))
            determinant = a * d - b * c
            if not (determinant > 0).all():
                kind = "a reflection" if (determinant < 0).any() else "none that has an angle"
                raise ValueError(f"matrix must be a rotation and a shift, got {kind}")
        return cls(*_of_matrix(m, *image_centre(shape)))

    def matrix(self, shape: Shape) -> jax.Array:
        """Convert to ``(..., 3, 3)`` matrices on homogeneous pixel coordinates ``(x, y, 1)``.

        With ``M = np.asarray(T.matrix(fixed.shape))``, ``cv2.warpAffine(fixed, M[:2], (W, H))`` and
        ``skimage.transform.warp(fixed, np.linalg.inv(M))`` warp as `jaxreg.warp` does.

        Args:
          shape: ``(H, W)`` or ``(H, W, C)`` of one image; it fixes the centre of rotation.
        """
        return _matrix(self._native(), *image_centre(shape))

    def inverse(self) -> RigidTransform:
        """The transform that undoes this one."""
        return _inverse(self._native())

    def compose(self, first: RigidTransform) -> RigidTransform:
        """Apply ``first``, then ``self``, as one transform.

        ``second.compose(first).apply(p, shape)`` is ``second.apply(first.apply(p, shape), shape)``.

        Raises:
          ValueError: ``first`` is no transform, or a batch of another shape.
        """
        check_transform(first, "first")
        _check_together(self.batch_shape, first.batch_shape, "first", "transforms")
        return _composed(self._native(), first._native())

    def accumulate(self) -> RigidTransform:
        """Compose steps from frame to frame into transforms from the first frame.

        Step k leads from frame k to frame k + 1; result k leads from frame 0 to frame k + 1:
        ``self[k].compose(self[k - 1])...compose(self[0])``, along the first axis of the batch.

        Raises:
          TypeError: this is one transform, not a batch.

        >>> steps = RigidTransform(np.ones(4), 0.0, 90.0)
        >>> [[round(float(v), 1) for v in t.as_array()] for t in steps.accumulate()]
        [[1.0, 0.0, 90.0], [1.0, 1.0, -180.0], [0.0, 1.0, -90.0], [0.0, 0.0, 0.0]]
        """
        len(self)  # TypeError unless it is a batch
        return _accumulated(self._native())

    def in_parent(
        self,
        shape: Shape,
        parent_shape: Shape,
        *,
        scale: float = 1.0,
        origin: ArrayLike | Sequence[float] = (0.0, 0.0),
    ) -> RigidTransform:
        """Convert a transform found on a crop, or at another scale, to one of the whole image.

        The same motion has another ``tx, ty`` there, as each image is rotated about its own centre.
        Both images of the pair must have been cut or scaled alike.

        Args:
          shape: ``(H, W)`` or ``(H, W, C)`` of the image that was registered.
          parent_shape: that of the whole image.
          scale: parent pixels for one pixel of the registered image, above 0.
          origin: ``(x, y)`` of its first pixel's centre in the parent: ``(left, top)`` for
            ``parent[top:, left:]``, ``(0, 0)`` for ``parent[::s, ::s]``, ``(s - 1) / 2`` each for
            means of s by s pixels. For a batch also ``batch_shape + (2,)``.

        Raises:
          ValueError: an argument is none of these.

        >>> crop = RigidTransform(0.0, 0.0, 180.0)  # of parent[0:9, 0:9], about its centre (4, 4)
        >>> crop.in_parent((9, 9), (9, 19)).apply([4.0, 4.0], (9, 19)).tolist()
        [4.0, 4.0]
        >>> half = RigidTransform(1.5, -2.0, 0.0)  # of parent[::2, ::2]
        >>> half.in_parent((16, 16), (32, 32), scale=2).as_array().tolist()
        [3.0, -4.0, 0.0]
        """
        origin = as_points(origin, "origin")
        _check_together(self.batch_shape, origin.shape[:-1], "origin", "points (x, y)")
        if not isinstance(scale, jax.core.Tracer) and not (np.ndim(scale) == 0 and scale > 0):
            raise ValueError(f"scale must be a number above 0, got {scale!r}")
        centre, parent_centre = image_centre(shape), image_centre(parent_shape)
        return _in_parent(self._native(), jnp.float32(scale), origin, centre, parent_centre)

    def apply(self, points: ArrayLike, shape: Shape) -> jax.Array:
        """Map points of the fixed image to the moving image.

        Args:
          points: ``(..., 2)`` array of ``(x, y)`` in pixels. For a batch of transforms, either
            one set of points ``(P, 2)`` for all or ``batch_shape + (P, 2)``.
          shape: ``(H, W)`` or ``(H, W, C)`` of one image; it fixes the centre of rotation.

        Raises:
          ValueError: ``points`` or ``shape`` is none of these.

        >>> t = RigidTransform(0.0, 0.0, 90.0)
        >>> [float(v) for v in t.apply([0.0, 0.0], (32, 32))]  # the top-left corner goes top-right
        [31.0, 0.0]
        """
        points = as_points(points)
        if points.ndim > 1:
            _check_together(self.batch_shape, points.shape[:-2], "points", "sets of points (P, 2)")
        return _moved(self._native(), points, *image_centre(shape))

    def _native(self) -> RigidTransform:
        """The same with fields that JAX accepts: no lists, no foreign byte order."""
        tuple(self.batch_shape)  # ValueError for fields of different shapes
        known = jax.Array | int | float
        fields = (self.tx, self.ty, self.theta)
        native = (v if isinstance(v, known) else np.asarray(v, np.float32) for v in fields)
        return RigidTransform(*native)


def _parameters(t: RigidTransform) -> Sequence[jax.Array]:
    """The fields as float32 of one shape; small integers would overflow."""
    return jnp.broadcast_arrays(*(jnp.asarray(v, jnp.float32) for v in (t.tx, t.ty, t.theta)))


@as_one
def _stacked(t: RigidTransform) -> jax.Array:
    return jnp.stack(_parameters(t), axis=-1)


@as_one
def _of_matrix(m: jax.Array, cx: ArrayLike, cy: ArrayLike) -> tuple[jax.Array, ...]:
    theta = jnp.rad2deg(jnp.atan2(m[..., 1, 0] - m[..., 0, 1], m[..., 0, 0] + m[..., 1, 1]))
    cos, sin = cos_sin_degrees(theta)
    tx = m[..., 0, 2] - cx + cos * cx - sin * cy
    ty = m[..., 1, 2] - cy + sin * cx + cos * cy
    return tx, ty, wrap_degrees(theta)


@as_one
def _matrix(t: RigidTransform, cx: ArrayLike, cy: ArrayLike) -> jax.Array:
    tx, ty, theta = _parameters(t)
    cos, sin = cos_sin_degrees(theta)
    dx = cx + tx - cos * cx + sin * cy
    dy = cy + ty - sin * cx - cos * cy
    zero, one = jnp.zeros_like(cos), jnp.ones_like(cos)
    rows = [jnp.stack(row, axis=-1) for row in ([cos, -sin, dx], [sin, cos, dy], [zero, zero, one])]
    return jnp.stack(rows, axis=-2)


@as_one
def _inverse(t: RigidTransform) -> RigidTransform:
    tx, ty, theta = _parameters(t)
    cos, sin = cos_sin_degrees(theta)
    return RigidTransform(-cos * tx - sin * ty, sin * tx - cos * ty, wrap_degrees(-theta))


@as_one
def _composed(second: RigidTransform, first: RigidTransform) -> RigidTransform:
    tx, ty, theta = _parameters(second)
    cos, sin = cos_sin_degrees(theta)
    x, y, angle = _parameters(first)
    return RigidTransform(
        cos * x - sin * y + tx, sin * x + cos * y + ty, wrap_degrees(theta + angle)
    )


@as_one
def _accumulated(steps: RigidTransform) -> RigidTransform:
    steps = RigidTransform(*_parameters(steps))
    return jax.lax.associative_scan(lambda first, second: _composed(second, first), steps)


@as_one
def _in_parent(
    t: RigidTransform, scale: jax.Array, origin: jax.Array, centre: Point, parent_centre: Point
) -> RigidTransform:
    tx, ty, theta = _parameters(t)
    cos, sin = cos_sin_degrees(theta)
    # In the parent, p' = R (p - d) + d + scale t, where d is the centre of the part; x, y: from d
    # to the parent's own centre.
    x, y = (parent_centre[i] - (origin[..., i] + scale * centre[i]) for i in range(2))
    tx = scale * tx + cos * x - sin * y - x
    ty = scale * ty + sin * x + cos * y - y
    return RigidTransform(tx, ty, wrap_degrees(jnp.broadcast_to(theta, tx.shape)))


@as_one
def _moved(t: RigidTransform, points: jax.Array, cx: ArrayLike, cy: ArrayLike) -> jax.Array:
    tx, ty, theta = _parameters(t)
    cos, sin = cos_sin_degrees(theta)
    if cos.ndim and points.ndim > 1:  # line the batch up against the axis of points
        cos, sin, tx, ty = (v[..., None] for v in (cos, sin, tx, ty))
    x, y = points[..., 0] - cx, points[..., 1] - cy
    return jnp.stack([cos * x - sin * y + cx + tx, sin * x + cos * y + cy + ty], axis=-1)
