"""Load the images of a run to the device, and draw pairs from them in each step."""

from __future__ import annotations

import dataclasses
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from jaxreg import data as sources
from jaxreg.disturbances import UNDISTURBED, disturb
from jaxreg.pairs import Pairs, draw_pairs
from jaxreg.scenes import draw_scene_pairs, draw_tiles
from jaxreg.training.configs import TrainConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class TrainingImages:
    """The images that pairs are drawn from; a pytree, an argument of the compiled step.

    Attributes:
      pictures: ``(N, H, W, 3)`` uint8, on the host until they are placed; None if all pairs are
        scene pairs.
      tiles: ``(M, S, S, 3)`` uint8 tiles of photographs for scene pairs, or None.
    """

    pictures: jax.Array | np.ndarray | None
    tiles: jax.Array | np.ndarray | None = None

    def __str__(self) -> str:
        named = {"images": self.pictures, "places of photographs": self.tiles}
        return " and ".join(f"{len(x):,} {name}" for name, x in named.items() if x is not None)


def load_training_images(config: TrainConfig) -> TrainingImages:
    """Load the training images to the host's memory."""
    pictures = tiles = None
    if config.scene_pairs < config.batch_size:
        pictures = _pool(config.data, "train", config.image_size)
    if config.scene_pairs:
        photographs = sources.photographs("train")
        tiles = draw_tiles(
            photographs, config.scene_tiles, config.image_size, config.max_shift, config.seed
        )
    return TrainingImages(pictures, tiles)


def load_held_out_images(config: TrainConfig) -> np.ndarray:
    """Load the images of the held-out pairs, uint8 ``(N, H, W, 3)``."""
    return _pool(config.eval_data or config.data, "test", config.image_size)


def describe_images(images: TrainingImages, held_out: np.ndarray) -> dict[str, list[int]]:
    """Return number and CRC-32 of a run's images by kind, from arrays on the host.

    >>> black = np.zeros((2, 4, 4, 3), np.uint8)
    >>> describe_images(TrainingImages(black), black[:1])
    {'training images': [2, 3136578990], 'held-out images': [1, 4069045141]}
    """
    named = {"training images": images.pictures, "places of photographs": images.tiles}
    arrays = {name: x for name, x in named.items() if x is not None} | {"held-out images": held_out}
    return {name: [len(x), zlib.crc32(np.ascontiguousarray(x).data)] for name, x in arrays.items()}


def _pool(names: tuple[str, ...], split: str, size: int) -> np.ndarray:
    """The images of several sources in one array."""
    sets = [sources.load_images(name, split, size) for name in names]
    return sets[0] if len(sets) == 1 else np.concatenate(sets)


def draw_batch(key: jax.Array, images: TrainingImages, config: TrainConfig) -> Pairs:
    """Draw the pairs of one step: scene pairs first, then pictures warped with zeros outside."""
    picture_key, scene_key, disturbance_key = jax.random.split(key, 3)
    parts = []
    if config.scene_pairs:
        tiles = jnp.asarray(images.tiles)
        parts.append(
            draw_scene_pairs(
                scene_key, tiles, config.scene_pairs, config.image_size, config.max_shift
            )
        )
    if config.scene_pairs < config.batch_size:
        count = config.batch_size - config.scene_pairs
        pictures = jnp.asarray(images.pictures)
        parts.append(
            draw_pairs(picture_key, pictures, count, config.max_shift, config.interpolation)
        )
    pairs = jax.tree.map(lambda *x: jnp.concatenate(x), *parts) if len(parts) > 1 else parts[0]
    if config.disturbance != UNDISTURBED:
        pairs = disturb(disturbance_key, pairs, config.disturbance, random_strength=True)
    return pairs
