"""The systems that the tables compare, and the harness's method for each."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from jaxreg.evaluation.suites import parse_suite
from jaxreg.network_files import shipped_names
from jaxreg.training.configs import CONFIGS

RUNS = Path("runs")


@dataclasses.dataclass(frozen=True)
class System:
    """A row of the tables.

    Attributes:
      name: name in flags and file names.
      label: name in the tables.
      configs: for trained networks, the named training configuration for each image size.
      method: for others, the name for `jaxreg.methods.find_method` if it is not ``name``.
    """

    name: str
    label: str
    configs: Mapping[int, str] = dataclasses.field(default_factory=dict)
    method: str = ""


# The paper's rows, in its order.
PAPER_SYSTEMS = (
    System("akaze", "AKAZE"),
    System("orb", "ORB"),
    System("surf", "SURF"),
    System("sift", "SIFT"),
    System("fft", "FFT"),
    System("resnext_fc", "ResNeXt-50+FC", {32: "resnext_fc_cifar10", 96: "resnext_fc_stl10"}),
    System(
        "resnext_lstm", "ResNeXt-50+LSTM", {32: "resnext_lstm_cifar10", 96: "resnext_lstm_stl10"}
    ),
    System("lstm", "LSTM", {32: "lstm_cifar10", 96: "lstm_stl10"}),
)
# Systems that the paper does not have; their rows are printed once they are recorded.
FURTHER_SYSTEMS = (
    System("akaze_x4", "AKAZE, enlarged 4x"),
    System("orb_x4", "ORB, enlarged 4x"),
    System("surf_x4", "SURF, enlarged 4x"),
    System("sift_x4", "SIFT, enlarged 4x"),
    System("lstm256", "LSTM, 256 units", {32: "lstm256_cifar10"}),
    System("lstm512", "LSTM, 512 units", {32: "lstm512_cifar10"}),
    System("compact", "compact network", {32: "compact32", 96: "compact96"}),
    System("compact-refine", "compact network, refined", method="compact+refine"),
    System("direct", "direct (jaxreg)"),
)
_BY_NAME = {system.name: system for system in PAPER_SYSTEMS + FURTHER_SYSTEMS}
_BY_METHOD = {system.method: system for system in FURTHER_SYSTEMS if system.method}
FEATURES = ("akaze", "orb", "surf", "sift")


def find_system(name: str) -> System:
    """Return the system of a name; any other method of the harness is a system by its own name.

    Characters that file names may lack are escaped, so that no two methods share a name.

    >>> find_system("lstm").configs[96]
    'lstm_stl10'
    >>> find_system("runs/other/").name, find_system("runs-other").name
    ('runs%2Fother', 'runs-other')
    """
    known = _BY_NAME.get(name) or _BY_METHOD.get(name)
    return known or System(quote(name.rstrip("/"), safe=""), name, method=name)


def recorded_system(name: str, method: str) -> System:
    """Return the system of recorded rows: one that is not listed here is labelled by its method.

    >>> recorded_system("lstm", "runs/me").label, recorded_system("runs%2Fme", "runs/me").label
    ('LSTM', 'runs/me')
    """
    return _BY_NAME.get(name) or System(name, method, method=method)


def method_of(system: System, suite: str, folders: Mapping[str, str] | None = None) -> str:
    """Return the name of a system's method for `jaxreg.evaluate`.

    Args:
      system: the system.
      suite: name of the suite; there is a separate network for each image size.
      folders: checkpoint folders by configuration. Other configurations take the network of that
        name in the package, or else ``runs/CONFIGURATION``.

    Raises:
      ValueError: the system has no network for images of this size.

    >>> method_of(find_system("lstm"), "random96")
    'runs/lstm_stl10'
    >>> method_of(find_system("compact"), "random32")
    'compact32'
    >>> method_of(find_system("fft"), "random96")
    'fft'
    """
    if not system.configs:
        return system.method or system.name
    size = parse_suite(suite).size
    if size not in system.configs:
        raise ValueError(f"{system.name} has no network for {size}x{size} images, as in {suite}")
    config = system.configs[size]
    default = config if config in shipped_names() else RUNS / config
    return os.fspath((folders or {}).get(config, default))


def parse_folders(items: list[str]) -> dict[str, str]:
    """Convert ``CONFIGURATION:FOLDER`` texts to a dictionary.

    >>> parse_folders(["lstm_cifar10:/data/lstm"])
    {'lstm_cifar10': '/data/lstm'}
    """
    folders = {}
    for item in items:
        config, colon, folder = item.partition(":")
        if not colon or config not in CONFIGS:
            raise ValueError(
                f"--checkpoints takes CONFIGURATION:FOLDER, got {item!r}; configurations are "
                + ", ".join(CONFIGS)
            )
        folders[config] = folder
    return folders
