"""Rigid registration of small images, in JAX.

`register` finds the shift and rotation between two images, `register_batch` between N pairs of
them; both return a `Registration`: its `RigidTransform`, covariance, and whether to trust it
(`Doubt` names what speaks against it). `warp`, `sample` and `overlap` apply a transform to images.
`scene_mask` masks what stays with the sensor, `method_names` lists the methods of registration, and
`load` loads a trained network. The conventions (axes, units, signs, centre of rotation) are those
of `jaxreg.geometry`.

>>> import jax, jaxreg
>>> fixed = jax.random.uniform(jax.random.key(0), (128, 95))
>>> moving = jaxreg.warp(fixed, jaxreg.RigidTransform(tx=2.25, ty=-1.5, theta=100.0))
>>> r = jaxreg.register(fixed, moving)
>>> [round(float(v), 2) for v in r.transform.as_array()], bool(r.success)
([2.25, -1.5, 100.0], True)
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from jaxreg.geometry import RigidTransform
from jaxreg.methods import method_names
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
    "method_names",
    "overlap",
    "register",
    "register_batch",
    "sample",
    "scene_mask",
    "warp",
]


def load(name: str | os.PathLike[str]) -> TrainedNetwork:
    """Load a trained network: one that comes with the package, or one of your own.

    Args:
      name: ``"compact32"`` or ``"compact96"``, which come with the package; the ``--workdir`` of a
        training run; or a file that ``python -m jaxreg.export`` wrote. Write ``"./compact32"`` for
        a folder of your own with the name of a network of the package.

    Returns:
      A `jaxreg.models.trained.TrainedNetwork`: ``.register(fixed, moving)``,
      ``.register_batch``, and ``.estimate`` for the evaluation harness.

    Raises:
      ValueError: there is no such network; the message lists those of the package.

    >>> load("compact32").image_size
    32
    """
    # Imported here, because Flax takes long to import.
    from jaxreg.training.loading import load

    return load(name)
