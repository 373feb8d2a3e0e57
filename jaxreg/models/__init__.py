"""The registration networks, by name.

A network is built from its configuration, a frozen dataclass: ``LSTMConfig().build(nnx.Rngs(0))``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from jaxreg.models.compact import CompactConfig
from jaxreg.models.lstm import LSTMConfig
from jaxreg.models.network import Network, NetworkConfig
from jaxreg.models.siamese import ResNeXtConfig

__all__ = ["NETWORKS", "Network", "NetworkConfig", "network_from_dict", "network_to_dict"]

NETWORKS: dict[str, type] = {
    "lstm": LSTMConfig,
    "resnext": ResNeXtConfig,
    "compact": CompactConfig,
}


def network_to_dict(config: NetworkConfig) -> dict[str, Any]:
    """A configuration as JSON-able fields, with the key ``network`` naming its kind.

    >>> network_to_dict(LSTMConfig(hidden=64))["network"]
    'lstm'
    """
    name = next((name for name, kind in NETWORKS.items() if type(config) is kind), None)
    if name is None:
        raise ValueError(
            f"config must be one of {_names(t.__name__ for t in NETWORKS.values())}, "
            f"got {type(config).__name__}"
        )
    fields = [f.name for f in dataclasses.fields(NETWORKS[name])]
    return {"network": name, **{field: _plain(getattr(config, field)) for field in fields}}


def network_from_dict(fields: dict[str, Any]) -> NetworkConfig:
    """The configuration that `network_to_dict` wrote; fields left out take their defaults.

    >>> network_from_dict({"network": "lstm", "hidden": 64}).hidden
    64

    Raises:
      ValueError: for an unknown network, or a field that it does not have.
    """
    rest = dict(fields)
    name = rest.pop("network", None)
    if name not in NETWORKS:
        raise ValueError(f"network must be one of {_names(NETWORKS)}, got {name!r}")
    known = [f.name for f in dataclasses.fields(NETWORKS[name])]
    unknown = [key for key in rest if key not in known]
    if unknown:
        raise ValueError(f"network {name!r} has no {_names(unknown)}; it has {_names(known)}")
    return NETWORKS[name](**{k: tuple(v) if isinstance(v, list) else v for k, v in rest.items()})


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _names(names: Iterable[str]) -> str:
    return ", ".join(names)
