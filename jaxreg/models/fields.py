"""Convert frozen dataclasses of settings to and from dictionaries, and override fields by flags.

The type hints of the fields are the schema. An unknown field or a value of the wrong type raises a
ValueError that names what is known.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Sequence
from typing import Any, Literal

from jaxreg.models import NETWORKS, NetworkConfig


def to_dict(config: Any) -> dict[str, Any]:
    """Convert settings to JSON-able values; a nested dataclass becomes a nested dictionary."""
    result: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if type(value) in NETWORKS.values():
            value = network_to_dict(value)
        elif dataclasses.is_dataclass(value):
            value = to_dict(value)
        result[field.name] = list(value) if isinstance(value, tuple) else value
    return result


def from_dict(kind: type, values: dict[str, Any]) -> Any:
    """Build the dataclass ``kind`` from a dictionary of `to_dict`.

    Fields that are left out take their defaults.

    Raises:
      ValueError: ``values`` is no dictionary, a field is unknown, a field without a default is
        missing, or a value has the wrong type.
    """
    if not isinstance(values, dict):
        raise ValueError(f"must be a dictionary of fields, got {values!r}")
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    arguments = {}
    for name, value in values.items():
        if name not in names:
            raise ValueError(f"unknown field {name!r}{_suggestion(name, names)}")
        arguments[name] = _checked(name, hints[name], value)
    for field in dataclasses.fields(kind):
        optional = (field.default, field.default_factory) != (dataclasses.MISSING,) * 2
        if not optional and field.name not in values:
            raise ValueError(f"{field.name} is missing")
    return kind(**arguments)


def network_to_dict(config: NetworkConfig) -> dict[str, Any]:
    """Convert a network's configuration to a dictionary; its key ``network`` names the kind.

    >>> from jaxreg.models.lstm import LSTMConfig
    >>> network_to_dict(LSTMConfig(hidden=64))["network"]
    'lstm'
    """
    name = next((name for name, kind in NETWORKS.items() if type(config) is kind), None)
    if name is None:
        kinds = ", ".join(kind.__name__ for kind in NETWORKS.values())
        raise ValueError(f"config must be one of {kinds}, got {type(config).__name__}")
    return {"network": name} | to_dict(config)


def network_from_dict(values: dict[str, Any]) -> NetworkConfig:
    """Build a network's configuration from a dictionary of `network_to_dict`.

    Fields that are left out take their defaults.

    >>> network_from_dict({"network": "lstm", "hidden": 64}).hidden
    64

    Raises:
      ValueError: the network or a field is unknown, or a value has the wrong type.
    """
    rest = dict(values)
    name = rest.pop("network", None)
    if name not in NETWORKS:
        raise ValueError(f"network must be one of {', '.join(NETWORKS)}, got {name!r}")
    return from_dict(NETWORKS[name], rest)


def flat_fields(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return all settings by name, the nested ones by dotted names such as ``network.hidden``.

    >>> from jaxreg.models.lstm import LSTMConfig
    >>> flat_fields(LSTMConfig(), "network.")["network.hidden"]
    3000
    """
    result: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        name = prefix + field.name
        if dataclasses.is_dataclass(value):
            result |= flat_fields(value, name + ".")
        else:
            result[name] = value
    return result


def override(config: Any, arguments: Sequence[str]) -> Any:
    """Return a copy of ``config`` with command-line arguments such as ``--batch_size=64`` applied.

    Nested fields are written with a dot, ``--network.hidden=512``; ``--network=compact`` takes
    another network with its default settings. Tuples are written with commas. If a field is given
    twice, the last value counts.

    Raises:
      ValueError: an argument has another form, a field is unknown, or a value has the wrong type.
    """
    changes: dict[str, Any] = {}
    for argument in arguments:
        name, equals, text = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not equals:
            raise ValueError(f"expected --field=value, got {argument!r}")
        first, *rest = name.split(".")
        changes[first] = _changed(config, changes, name, [first, *rest], text)
    return dataclasses.replace(config, **changes)  # all at once: they are checked together


def _changed(
    config: Any, changes: dict[str, Any], full: str, path: Sequence[str], text: str
) -> Any:
    """The new value of the first field of ``path``, given the changes made so far.

    Args:
      config: the configuration as it was.
      changes: new values of its fields, by name.
      full: the whole name as the user wrote it, for errors.
      path: the part of the name that remains below ``config``.
      text: the value as the user wrote it.
    """
    if path[0] not in (field.name for field in dataclasses.fields(config)):
        known = list(flat_fields(config, full.removesuffix(".".join(path))))
        raise ValueError(f"unknown field {full!r}{_suggestion(full, known)}")
    kind = typing.get_type_hints(type(config))[path[0]]
    old = changes.get(path[0], getattr(config, path[0]))
    if len(path) > 1 and not dataclasses.is_dataclass(old):
        raise ValueError(f"unknown field {full!r}: {path[0]!r} has no fields of its own")
    if len(path) > 1:
        new = _changed(old, {}, full, path[1:], text)
        return dataclasses.replace(old, **{path[1]: new})
    if kind is NetworkConfig:
        return network_from_dict({"network": text})
    return _parsed(full, kind, text)


def _parsed(name: str, kind: Any, text: str) -> Any:
    """Parse ``text`` as a value of the type ``kind``."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        parts = [part for part in text.split(",") if part]
        item = [inner[0]] * len(parts) if inner[-1] is Ellipsis else list(inner)
        if len(item) != len(parts):
            raise ValueError(f"{name} takes {len(item)} values with commas, got {text!r}")
        return tuple(_parsed(name, k, part) for k, part in zip(item, parts, strict=True))
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            raise _wrong_type(name, kind, text) from None
    return _checked(name, kind, text)


def _checked(name: str, kind: Any, value: Any) -> Any:
    """Return ``value`` as the type ``kind``; lists become tuples, dictionaries dataclasses."""
    if kind is NetworkConfig:
        return network_from_dict(value) if isinstance(value, dict) else value
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return from_dict(kind, value)
    if origin is Literal:
        if value not in inner:
            raise ValueError(f"{name} must be one of {', '.join(map(str, inner))}, got {value!r}")
        return value
    if origin is tuple and isinstance(value, list | tuple):
        items = [inner[0]] * len(value) if inner[-1] is Ellipsis else inner
        if len(items) != len(value):
            raise ValueError(f"{name} must be {len(items)} values, got {value!r}")
        return tuple(_checked(name, k, v) for k, v in zip(items, value, strict=True))
    if kind is float and type(value) is int:
        return float(value)
    if not isinstance(kind, type) or type(value) is not kind:
        raise _wrong_type(name, kind, value)
    return value


def _wrong_type(name: str, kind: Any, value: Any) -> ValueError:
    words = {int: "a whole number", float: "a number", str: "text"}
    return ValueError(f"{name} must be {words.get(kind, kind)}, got {value!r}")


def _suggestion(name: str, known: list[str]) -> str:
    endings = [k for k in known if k.split(".")[-1] == name]
    near = endings or difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"{hint} Known: {', '.join(known)}" if hint else f"; known: {', '.join(known)}"
