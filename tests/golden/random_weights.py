"""Weights and inputs that two frameworks can both make from the names and shapes alone.

`RandomState`'s streams are frozen by NumPy's policy, so the golden values stay valid.
"""

import math
import zlib

import numpy as np

RESNEXT_INFERENCE = (2, 64, 64, 3)
RESNEXT_TRAINING = (4, 64, 64, 3)
LSTM = {"inputs": 12, "hidden": 16, "layers": 3, "count": 5}
STAGES = ("stem", "layer1", "layer2", "layer3", "layer4", "pool", "fc")


def uniform(name, shape, low=-1.0, high=1.0):
    """float32 numbers that depend on the name and the shape only."""
    stream = np.random.RandomState(zlib.crc32(name.encode()))
    return (low + (high - low) * stream.random_sample(shape)).astype(np.float32)


def entry(key, shape):
    """One entry of a ResNeXt state dict, such that activations stay in the order of 1."""
    if key.endswith("num_batches_tracked"):
        return np.asarray(0, np.int64)
    if key.endswith("running_var"):
        return uniform(key, shape, 0.5, 1.5)
    if len(shape) == 1:
        if key.endswith("weight"):
            last = ".bn3." in key
            return uniform(key, shape, 0.1, 0.3) if last else uniform(key, shape, 0.7, 1.3)
        return uniform(key, shape, -0.1, 0.1)
    limit = math.sqrt((6 if len(shape) == 4 else 3) / np.prod(shape[1:]))
    return uniform(key, shape, -limit, limit)


def sample(array, count=400):
    """A few values from all over an array."""
    flat = np.asarray(array).ravel()
    return flat[:: max(1, flat.size // count) | 1][:count]
