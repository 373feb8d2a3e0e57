"""Settings of the direct method: how far it searches, and with which kernel."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxreg.geometry import Shape

Kernel = Literal["auto", "linear", "spline"]
AUTO, LINEAR, SPLINE = range(len(get_args(Kernel)))  # as data
WIDEST = 1 / 3, 1 / 2  # largest shifts of the two programs, as shares of the shorter side
_ROUNDING = 1e-6  # relative: a third of a side in float32 pixels is still a third


class Settings(NamedTuple):
    """Settings for one pair. They are data, so that other values compile nothing anew.

    Attributes:
      max_shift: largest translation searched along an axis, as a share of the shorter side.
      max_rotation: largest rotation searched, in either direction, in degrees; 0 holds the angle.
      kernel: `AUTO` chooses it by the residual; `LINEAR` and `SPLINE` force one.
    """

    max_shift: jax.typing.ArrayLike = WIDEST[0]
    max_rotation: jax.typing.ArrayLike = 180.0
    kernel: jax.typing.ArrayLike = AUTO

    @property
    def turn(self) -> jax.Array:
        """`Pair.turn`: 0 where the angle is held, so that only shifts are searched; else 1."""
        return jnp.where(jnp.asarray(self.max_rotation) > 0.0, 1.0, 0.0)


@dataclasses.dataclass(frozen=True)
class DirectOptions:
    """Checked settings of the direct method.

    Attributes:
      max_shift: as in `Settings`; see `share_of_side`.
      interpolation: ``"auto"``, ``"linear"`` or ``"spline"``.
      max_rotation: as in `Settings`.

    Raises:
      ValueError: a setting is no number or out of range, or the kernel is unknown.
    """

    max_shift: float = WIDEST[0]
    interpolation: Kernel = "auto"
    max_rotation: float = 180.0

    def __post_init__(self):
        for name in ("max_shift", "max_rotation"):
            object.__setattr__(self, name, _number(getattr(self, name), name))
        if not 0.0 < self.max_shift <= WIDEST[1]:
            raise ValueError(
                f"max_shift must be in (0, 0.5], a share of the shorter side, got {self.max_shift}"
            )
        if not 0.0 <= self.max_rotation <= 180.0:
            raise ValueError(f"max_rotation must be in [0, 180] degrees, got {self.max_rotation}")
        if self.interpolation not in get_args(Kernel):
            *others, last = get_args(Kernel)
            raise ValueError(
                f"interpolation must be {', '.join(others)} or {last}, got {self.interpolation!r}"
            )

    @property
    def bounds_search(self) -> bool:
        """Whether a limit differs from its default; holding the angle does not count."""
        return self.max_shift != DirectOptions.max_shift or 0.0 < self.max_rotation < 180.0

    @property
    def far(self) -> bool:
        """Whether these settings need the program that searches farther; static."""
        return self.max_shift > WIDEST[0]

    @property
    def settings(self) -> np.ndarray:
        """``(3,)`` float32, the fields of `Settings`."""
        kernel = get_args(Kernel).index(self.interpolation)
        return np.array(Settings(self.max_shift, self.max_rotation, kernel), np.float32)


def share_of_side(max_shift: Any, shape: Shape) -> float:
    """The `DirectOptions.max_shift` of a limit in pixels.

    A limit of a third of the shorter side gives exactly the default, whatever its rounding.

    Args:
      max_shift: in pixels, above 0 and up to half of the shorter side; None for a third of it.
      shape: the images', starting with ``(H, W)``.

    Raises:
      ValueError: ``max_shift`` is no number or out of range; the error gives the range in pixels.

    >>> share_of_side(8, (32, 48)), share_of_side(None, (32, 48)) == share_of_side(32 / 3, (32, 48))
    (0.25, True)
    """
    if max_shift is None:
        return WIDEST[0]
    height, width = shape[:2]
    pixels = _number(max_shift, "max_shift")
    share = pixels / min(height, width)
    for widest in WIDEST:
        if math.isclose(share, widest, rel_tol=_ROUNDING):
            return widest
    if not 0.0 < share <= WIDEST[1]:
        raise ValueError(
            f"max_shift must be above 0 and at most {min(height, width) / 2:g} pixels, half of the "
            f"shorter side of {height} x {width} images, got {pixels:g}"
        )
    return share


def _number(value: Any, name: str) -> float:
    """A setting as a float; ValueError, with its name, if it is no number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        traced = isinstance(value, jax.core.Tracer)
        hint = "; under jit make it a static argument" if traced else ""
        hint += ", and under vmap a Python or NumPy number, one for all pairs" if traced else ""
        raise ValueError(f"{name} must be a number, got {value!r}{hint}") from None
