"""Rigid transforms of the image plane, and the one convention they all follow.

x runs right and y runs down; pixel ``(0, 0)`` is the centre of the top-left pixel. A transform
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
MOST_CHANNELS = 16  # what has more on its last axis is rather a stack of grey images
# A number or an array of them, of which ``float(...)`` makes one.
Real = float | np.number | np.ndarray | jax.Array


def wrap_degrees(theta: ArrayLike) -> jax.Array:
    """The same angle in [-180, 180).

    >>> float(wrap_degrees(190.0))
    -170.0
    """
    theta = jnp.asarray(theta, jnp.float32)
    turns = jax.lax.stop_gradient(jnp.floor((theta + 180.0) / 360.0))
    wrapped = theta - 360.0 * turns
    # Just below 180 the sum with 180 rounds up to a whole turn.
    return jnp.where(wrapped < -180.0, wrapped + 360.0, wrapped)


def cos_sin_degrees(theta: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of an angle in degrees, exact at multiples of 90.

    Exactness matters: a quarter turn must move pixels onto pixels, not next to them.

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
    # Adding 0.0 turns a negative zero into a plain one.
    return jnp.where(behind, -cos, cos) + 0.0, jnp.where(behind, -sin, sin) + 0.0


def as_points(points: ArrayLike) -> jax.Array:
    """Points ``(..., 2)`` of ``(x, y)`` in float32; ValueError if they have another shape."""
    points = jnp.asarray(points, jnp.float32)
    if points.ndim == 0 or points.shape[-1] != 2:
        raise ValueError(f"points must end in an axis of 2 (x, y), got shape {points.shape}")
    return points


def image_centre(shape: Shape) -> tuple[float, float]:
    """Centre ``(x, y)`` of an image whose shape is ``(H, W)`` or ``(H, W, C)``.

    >>> image_centre((32, 48))
    (23.5, 15.5)
    """
    if not isinstance(shape, tuple | list):
        an_image = hasattr(shape, "shape") or hasattr(shape, "tx")
        kind = type(shape).__name__ + ": its .shape?" * an_image
        raise ValueError(f"shape must be one image's, (H, W) or (H, W, C), got {kind}")
    if not 2 <= len(shape) <= 3 or max(shape[2:], default=1) > MOST_CHANNELS:
        raise ValueError(f"shape must be one image's, (H, W) or (H, W, C), got {shape}")
    return (shape[1] - 1) / 2, (shape[0] - 1) / 2


def check_transform(transform: object, name: str) -> None:
    """ValueError, with its name, for what is no `RigidTransform`."""
    if not isinstance(transform, RigidTransform):
        hint = "; give its .transform" if hasattr(transform, "transform") else ""
        kind = type(transform).__name__
        raise ValueError(f"{name} must be a RigidTransform, got {kind}{hint}")


def _check_together(batch_shape: Shape, shape: Shape, name: str, what: str) -> None:
    """ValueError, with its name, for as many of something as do not go with a batch."""
    try:
        np.broadcast_shapes(batch_shape, shape)
    except ValueError:
        raise ValueError(
            f"{name} must be {what} in the shape of the batch, {batch_shape}, or one for all, "
            f"got {shape} of them"
        ) from None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RigidTransform:
    """A rotation about the image centre followed by a shift; a pytree.

    Fields are scalars, or arrays of one shared shape for a batch of transforms (every method
    then works on the whole batch); a scalar among arrays is that of all.

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
        """Some transforms of a batch, or one of them: whatever indexes an array."""
        len(self)  # refuses what is no batch
        return part(self, index, self.batch_shape)

    def __iter__(self) -> Iterator[RigidTransform]:
        """The transforms of a batch, one after the other; on the host, unless it is traced."""
        count = len(self)
        return map(on_host(self).__getitem__, range(count))

    def __len__(self) -> int:
        """How many transforms a batch holds."""
        if not self.batch_shape:
            raise TypeError("one transform, not a batch of them, has no length and no index")
        return self.batch_shape[0]

    def __bool__(self) -> bool:
        """True, whatever the length: only None stands for no transform."""
        return True

    @property
    def batch_shape(self) -> Shape:
        """The shape of the fields that are arrays; ``()`` for one transform.

        Raises:
          ValueError: they have different ones.
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
        """The transform that moves nothing, repeated to ``batch_shape``."""
        zero = jnp.zeros(batch_shape, jnp.float32)
        return cls(zero, zero, zero)

    @classmethod
    def from_array(cls, parameters: ArrayLike) -> RigidTransform:
        """From an array of any real dtype whose last axis holds ``(tx, ty, theta)``.

        Raises:
          ValueError: it has another shape.
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
        """The transform that a matrix in pixel coordinates stands for; inverse of `matrix`.

        Args:
          matrix: ``(..., 3, 3)`` or ``(..., 2, 3)``, rigid: its 2x2 block a rotation. A block with
            a scale or shear besides gives the angle of its nearest rotation. A third row is taken
            for ``(0, 0, 1)``.
          shape: one image's, ``(H, W)`` or ``(H, W, C)``.

        Raises:
          ValueError: it has another shape, or (outside of jit) its 2x2 block is a reflection, or
            has no angle.

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
        """``(..., 3, 3)`` matrix on homogeneous pixel coordinates ``(x, y, 1)``.

        With ``M = np.asarray(T.matrix(fixed.shape))``, ``cv2.warpAffine(fixed, M[:2], (W, H))`` and
        ``skimage.transform.warp(fixed, np.linalg.inv(M))`` warp as `jaxreg.warp` does.

        Args:
          shape: one image's, ``(H, W)`` or ``(H, W, C)``; it fixes the centre of rotation.
        """
        return _matrix(self._native(), *image_centre(shape))

    def inverse(self) -> RigidTransform:
        """The transform that undoes this one."""
        return _inverse(self._native())

    def compose(self, first: RigidTransform) -> RigidTransform:
        """``self`` after ``first``: ``self.compose(first)(p) == self(first(p))``.

        Raises:
          ValueError: ``first`` is no transform, or as many as do not go with these.
        """
        check_transform(first, "first")
        _check_together(self.batch_shape, first.batch_shape, "first", "transforms")
        return _composed(self._native(), first._native())

    def apply(self, points: ArrayLike, shape: Shape) -> jax.Array:
        """Where points of the fixed image lie in the moving one.

        Args:
          points: ``(..., 2)`` array of ``(x, y)`` in pixels. For a batch of transforms, either
            one set of points ``(P, 2)`` for all or ``batch_shape + (P, 2)``.
          shape: one image's, ``(H, W)`` or ``(H, W, C)``.

        Raises:
          ValueError: points or shape have another form.

        >>> t = RigidTransform(0.0, 0.0, 90.0)
        >>> [float(v) for v in t.apply([0.0, 0.0], (32, 32))]  # the top-left corner goes top-right
        [31.0, 0.0]
        """
        points = as_points(points)
        if points.ndim > 1:
            _check_together(self.batch_shape, points.shape[:-2], "points", "sets of points (P, 2)")
        return _moved(self._native(), points, *image_centre(shape))

    def _native(self) -> RigidTransform:
        """With fields that a program takes, which are neither lists nor of foreign byte order."""
        tuple(self.batch_shape)  # refuses fields of different shapes
        known = jax.Array | int | float
        fields = (self.tx, self.ty, self.theta)
        return RigidTransform(
            *(v if isinstance(v, known) else np.asarray(v, np.float32) for v in fields)
        )


def _parameters(t: RigidTransform) -> Sequence[jax.Array]:
    """As they are computed with, of one shape: small integers would overflow."""
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
def _moved(t: RigidTransform, points: jax.Array, cx: ArrayLike, cy: ArrayLike) -> jax.Array:
    tx, ty, theta = _parameters(t)
    cos, sin = cos_sin_degrees(theta)
    if cos.ndim and points.ndim > 1:  # line the batch up against the axis of points
        cos, sin, tx, ty = (v[..., None] for v in (cos, sin, tx, ty))
    x, y = points[..., 0] - cx, points[..., 1] - cy
    return jnp.stack([cos * x - sin * y + cx + tx, sin * x + cos * y + cy + ty], axis=-1)
