"""Rigid registration of small images, in JAX.

>>> import jaxreg
>>> sorted(jaxreg.__all__)[:3]
['Doubt', 'Registration', 'RigidTransform']
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from jaxreg.geometry import RigidTransform
from jaxreg.registration import register, register_batch
from jaxreg.result import Doubt, Registration
from jaxreg.sensor import scene_mask
from jaxreg.warping import overlap, sample, warp

if TYPE_CHECKING:
    from jaxreg.models.trained import TrainedNetwork

__version__ = "0.1.0"
__all__ = [
    "Doubt",
    "Registration",
    "RigidTransform",
    "load",
    "overlap",
    "register",
    "register_batch",
    "sample",
    "scene_mask",
    "warp",
]


def load(name: str | os.PathLike[str]) -> TrainedNetwork:
    """A trained network: one that comes with the package, or one of your own.

    Args:
      name: ``"compact32"`` or ``"compact96"``, which come with the package; the ``--workdir`` of a
        training run; or a file that ``python -m jaxreg.export`` wrote. A folder of your own with
        the name of a network of the package is ``"./compact32"``.

    Returns:
      A `jaxreg.models.trained.TrainedNetwork`: ``.register(fixed, moving)``,
      ``.register_batch``, and ``.estimate`` for the evaluation harness.

    Raises:
      ValueError: there is no such network; says which come with the package.
    """
    # Here, because Flax takes long to import.
    from jaxreg.training.loading import load

    return load(name)
