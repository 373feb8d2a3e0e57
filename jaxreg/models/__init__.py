"""The registration networks, by name.

Build a network from its configuration, a frozen dataclass: ``LSTMConfig().build(nnx.Rngs(0))``.
"""

from __future__ import annotations

from jaxreg.models.compact import CompactConfig
from jaxreg.models.lstm import LSTMConfig
from jaxreg.models.network import Network, NetworkConfig
from jaxreg.models.siamese import ResNeXtConfig

__all__ = ["NETWORKS", "Network", "NetworkConfig"]

NETWORKS: dict[str, type] = {
    "lstm": LSTMConfig,
    "resnext": ResNeXtConfig,
    "compact": CompactConfig,
}
