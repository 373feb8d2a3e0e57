"""Find the files of trained networks: in the package, in files and in folders.

Needs no network library, so that importing it is light.
"""

from __future__ import annotations

import os
from pathlib import Path

SHIPPED = Path(__file__).parent / "weights"
SUFFIX = ".safetensors"


def shipped_names() -> list[str]:
    """List the names of the trained networks that come with the package.

    >>> "compact32" in shipped_names()
    True
    """
    return sorted(path.stem for path in SHIPPED.glob(f"*{SUFFIX}"))


def find_network(name: str | os.PathLike[str]) -> Path | None:
    """Find the package's file, or the user's file or folder, that a name stands for.

    Returns:
      Its path; None if the name stands for neither.

    >>> find_network("compact32").name
    'compact32.safetensors'
    """
    if os.fspath(name) in shipped_names():
        return SHIPPED / f"{os.fspath(name)}{SUFFIX}"
    path = os.path.expanduser(name)
    is_file = path.endswith(SUFFIX) and os.path.isfile(path)
    return Path(path) if is_file or os.path.isdir(path) else None
