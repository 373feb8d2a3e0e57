"""Checksums of a checkpoint's files, and the errors of checkpoints that cannot be used."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from pathlib import Path

from jaxreg.atomic import replacing

_SEAL = "checksums.json"
_BLOCK = 1 << 22  # bytes that are read at a time for a checksum


class CheckpointError(ValueError):
    """A folder holds no usable checkpoint, or belongs to another run."""


class DamagedError(CheckpointError):
    """A checkpoint's files differ from what was written."""


class UnfinishedError(DamagedError):
    """A checkpoint was not written completely."""


def _checksums(folder: Path) -> dict[str, int]:
    """Return the CRC-32 of every file below a checkpoint's folder, by relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _SEAL)
    return {path.relative_to(folder).as_posix(): _checksum(path) for path in files}


def _checksum(path: Path) -> int:
    total = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            total = zlib.crc32(block, total)
    return total


def seal(folder: Path) -> None:
    """Write the checksums of a complete checkpoint; without them it counts as incomplete."""
    text = json.dumps(_checksums(folder))
    with replacing(folder / _SEAL) as file:
        file.write(text.encode())


def check_seal(folder: Path, parts: Iterable[str]) -> None:
    """Raise DamagedError unless all files of these parts match their checksums."""
    try:
        expected = json.loads((folder / _SEAL).read_text())
    except FileNotFoundError:
        if not folder.exists():
            raise
        raise UnfinishedError("it was never finished") from None
    except ValueError:
        raise DamagedError(f"{_SEAL} cannot be read") from None
    for name, checksum in expected.items():
        if name.split("/")[0] in parts:
            path = folder / name
            if not path.is_file():
                raise DamagedError(f"{name} is missing")
            if _checksum(path) != checksum:
                raise DamagedError(f"{name} is not as it was written")
