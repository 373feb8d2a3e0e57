"""What may be asked of the direct method: how far it searches, and by which kernel."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

Kernel = Literal["auto", "linear", "spline"]
AUTO, LINEAR, SPLINE = range(len(get_args(Kernel)))  # as data
WIDEST = 1 / 3, 1 / 2  # the shifts, as shares of the shorter side, that there are programs for


class Settings(NamedTuple):
    """What is asked of a pair; data, so that nothing is compiled anew for others.

    Attributes:
      max_shift: largest translation searched along an axis, as a share of the shorter side.
      max_rotation: largest rotation searched, either way, in degrees; 0 holds the angle.
      kernel: `AUTO` chooses it by the residual; `LINEAR` and `SPLINE` force one.
    """

    max_shift: jax.typing.ArrayLike = WIDEST[0]
    max_rotation: jax.typing.ArrayLike = 180.0
    kernel: jax.typing.ArrayLike = AUTO

    @property
    def turn(self) -> jax.Array:
        """`Pair.turn`: 0 where no rotation is looked for, so that shifts alone are found."""
        return jnp.where(jnp.asarray(self.max_rotation) > 0.0, 1.0, 0.0)


@dataclasses.dataclass(frozen=True)
class DirectOptions:
    """Settings of the direct method, checked.

    Attributes:
      max_shift: as in `Settings`.
      interpolation: ``"auto"``, ``"linear"`` or ``"spline"``.
      max_rotation: as in `Settings`.
    """

    max_shift: float = WIDEST[0]
    interpolation: Kernel = "auto"
    max_rotation: float = 180.0

    def __post_init__(self):
        for name in ("max_shift", "max_rotation"):
            value: Any = getattr(self, name)
            try:
                object.__setattr__(self, name, float(value))
            except (TypeError, ValueError):
                traced = isinstance(value, jax.core.Tracer)
                hint = "; under jit make it a static argument" if traced else ""
                raise ValueError(f"{name} must be a number, got {value!r}{hint}") from None
        if not 0.0 < self.max_shift <= 0.5:
            raise ValueError(
                "max_shift must be in (0, 0.5], a share of the shorter side, not pixels, "
                f"got {self.max_shift}"
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
        """Whether anything but the default, or a held angle, bounds the search."""
        return self.max_shift != DirectOptions.max_shift or 0.0 < self.max_rotation < 180.0

    @property
    def far(self) -> bool:
        """Whether it takes the program that searches farther; static."""
        return self.max_shift > WIDEST[0]

    @property
    def settings(self) -> np.ndarray:
        """``(3,)`` float32, the fields of `Settings`."""
        kernel = get_args(Kernel).index(self.interpolation)
        return np.array(Settings(self.max_shift, self.max_rotation, kernel), np.float32)
