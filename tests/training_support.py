"""What the tests of training share: a run small enough for a second of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxreg.geometry import RigidTransform
from jaxreg.models import NETWORKS
from jaxreg.models.compact import CompactConfig
from jaxreg.models.lstm import LSTMConfig
from jaxreg.models.network import Network
from jaxreg.training import pictures
from jaxreg.training.configs import TrainConfig

TINY_COMPACT = CompactConfig(width=8, layers=1, features=4, angles=24, hidden=16, steps=1)
TINY_LSTM = LSTMConfig(hidden=8, layers=1, output_scale=(5.0, 5.0, 180.0))


@dataclasses.dataclass(frozen=True)
class NormedConfig:
    """A network with batch norm, which keeps statistics besides its weights."""

    image_size: int = 8
    width: int = 12

    def build(self, rngs):
        return NormedNetwork(self, rngs)


class NormedNetwork(Network):
    def __init__(self, config, rngs):
        self.image_size = config.image_size
        self.first = nnx.Linear(config.image_size**2 * 6, config.width, rngs=rngs)
        self.norm = nnx.BatchNorm(config.width, momentum=0.9, rngs=rngs)
        self.last = nnx.Linear(config.width, 3, rngs=rngs)

    def __call__(self, fixed, moving):
        both = jnp.concatenate([fixed, moving], axis=-1).reshape(fixed.shape[0], -1) / 128.0 - 1.0
        out = self.last(jax.nn.relu(self.norm(self.first(both))))
        return RigidTransform.from_array(out * jnp.array([5.0, 5.0, 90.0]))


def register_normed(patch):
    patch.setitem(NETWORKS, "normed", NormedConfig)


def without_pictures(patch):
    """Trainings draw nothing: it takes longer than their steps."""
    for name in ("write_examples", "write_curve"):
        patch.setattr(pictures, name, lambda *_: None)


def write_images(folder, size=8, count=20):
    path = folder / "images.npz"
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, size, size, 3), np.uint8)
    np.savez(path, train=images, test=images[::-1])
    return f"arrays:{path}"


def tiny_config(source, **fields):
    defaults = {
        "network": NormedConfig(),
        "data": (source,),
        "max_shift": 2.0,
        "batch_size": 8,
        "steps": 12,
        "learning_rate": 1e-3,
        "average_decay": 0.9,
        "steps_per_dispatch": 4,
        "eval_every": 6,
        "eval_pairs": 20,
        "save_every": 4,
    }
    return TrainConfig(**(defaults | fields))


def smallest_run(source, workdir, *more):
    """Arguments of the train command for a run small enough for a second of it."""
    return [
        "--config=lstm_cifar10_paper",
        f"--workdir={workdir}",
        f"--data={source}",
        "--network.hidden=4",
        "--network.layers=1",
        "--batch_size=4",
        "--eval_pairs=8",
        *more,
    ]


def assert_same_bits(a, b):
    """Two pytrees of arrays hold the same numbers, bit for bit."""
    leaves, others = jax.tree.leaves(a), jax.tree.leaves(b)
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(leaves, others, strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
