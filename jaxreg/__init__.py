"""Rigid registration of small images, in JAX.

>>> import jaxreg
>>> sorted(jaxreg.__all__)[:3]
['Registration', 'RigidTransform', 'load']
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxreg.geometry import RigidTransform
from jaxreg.registration import register, register_batch
from jaxreg.result import Registration
from jaxreg.warping import sample, warp

if TYPE_CHECKING:
    from jaxreg.training.trained import TrainedNetwork

__version__ = "0.1.0"
__all__ = ["Registration", "RigidTransform", "load", "register", "register_batch", "sample", "warp"]


def load(folder: str) -> TrainedNetwork:
    """A trained network, rebuilt from its checkpoint folder alone.

    Args:
      folder: the ``--workdir`` of a training run.

    Returns:
      A `jaxreg.training.trained.TrainedNetwork`: ``.register(fixed, moving)``,
      ``.register_batch``, and ``.estimate`` for the evaluation harness.

    Raises:
      FileNotFoundError: there is no checkpoint in the folder.
    """
    # Flax and Orbax are heavy: only who loads a network pays for them.
    from jaxreg.training.checkpoint import load_network

    return load_network(folder)
