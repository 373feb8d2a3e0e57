"""Registration networks in Flax NNX."""
