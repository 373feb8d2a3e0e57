"""Load published weights into the ResNeXt-50 extractor: state dicts of torchvision or timm.

Only arrays are read: ``.safetensors`` files hold no code, and ``.pth`` files are read with
``weights_only=True``.
"""

from __future__ import annotations

import contextlib
import pathlib
import pickle
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxreg.models.resnext import ResNeXt

REPOSITORY = "timm/resnext50_32x4d.tv_in1k"  # torchvision's IMAGENET1K_V1 weights
FILE_NAME = "model.safetensors"
ADDRESS = f"https://huggingface.co/{REPOSITORY}/resolve/main/{FILE_NAME}"

# Names of a module's arrays here -> in a torch state dict, where they differ.
TORCH_NAMES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
KEYS_SHOWN = 8  # wrong keys that an error names; it counts the rest
CONNECT_SECONDS = 5  # to wait for the server's answer

Module = TypeVar("Module", bound=nnx.Module)


def load_pretrained(network: Module, source: str) -> Module:
    """Load ImageNet weights into a network's ResNeXt-50 extractor, in place.

    Args:
      network: a `ResNeXt`, or a network whose ``extractor`` is one.
      source: path of a torchvision or timm state dict of resnext50_32x4d (``.safetensors``, or
        ``.pth`` / ``.pt`` if torch is installed), or ``"imagenet"``, which downloads torchvision's
        weights once from the Hugging Face hub into its cache. The classifier in it (``fc``) is
        ignored if its shape differs from that of the extractor's last layer.

    Returns:
      The same network.

    Raises:
      ValueError: the network has no such extractor, or the file is of another architecture. The
        error names missing and unexpected keys and wrong shapes; the network is unchanged.
      FileNotFoundError: there is no such file.
      ConnectionError: ``"imagenet"`` is not in the cache and cannot be fetched.
      ImportError: torch is missing, to read a ``.pth`` file.
    """
    extractor = network if isinstance(network, ResNeXt) else getattr(network, "extractor", None)
    if not isinstance(extractor, ResNeXt):
        raise ValueError(
            f"{source!r}: published weights are those of a ResNeXt-50, which "
            f"{type(network).__name__} has not; use the network 'resnext'"
        )
    load_state_dict(extractor, read_state_dict(source), source)
    return network


def load_state_dict(
    extractor: ResNeXt, entries: Mapping[str, np.ndarray], source: str = "entries"
) -> None:
    """Load all arrays of a torch state dict, or none; see `load_pretrained` for the errors."""
    flat = nnx.to_flat_state(nnx.state(extractor))  # the network's own variables
    wanted = {torch_key(path): torch_shape(variable.shape) for path, variable in flat}
    given = {k: v for k, v in entries.items() if not k.endswith("num_batches_tracked")}
    if any(given[k].shape != wanted[k] for k in _head(wanted) if k in given) or not _head(given):
        for key in _head(wanted):  # another classifier, or none: the last layer stays
            given.pop(key, None)
            wanted.pop(key)
    _refuse(source, "lacks", (k for k in wanted if k not in given))
    _refuse(source, "has besides", (k for k in given if k not in wanted))
    _refuse(
        source,
        "has of another shape",
        (f"{k} {given[k].shape} instead of {s}" for k, s in wanted.items() if given[k].shape != s),
    )
    for path, variable in flat:
        key = torch_key(path)
        if key in wanted:
            variable.set_value(jnp.asarray(from_torch_layout(given[key]), jnp.float32))


def torch_key(path: tuple[Any, ...]) -> str:
    """Return the key in a torch state dict of the array at a path of `ResNeXt`.

    >>> torch_key(("layer1", 0, "conv1", "kernel"))
    'layer1.0.conv1.weight'
    """
    *modules, name = (str(part) for part in path)
    return ".".join([*modules, TORCH_NAMES.get(name, name)])


def torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Torch's shape of an array: ``(O, I, KH, KW)`` of ``(KH, KW, I, O)``, else reversed."""
    if len(shape) == 4:
        return (shape[3], shape[2], shape[0], shape[1])
    return shape[::-1]


def from_torch_layout(array: np.ndarray) -> np.ndarray:
    """Convert an array from torch's axes to ours, the inverse of `torch_shape`."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def read_state_dict(source: str) -> dict[str, np.ndarray]:
    """Read the arrays of a ``.safetensors``, ``.pth`` or ``.pt`` file, or of ``"imagenet"``."""
    path = download() if source == "imagenet" else pathlib.Path(source).expanduser()
    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise ValueError(
            f"the source must be 'imagenet' or a .safetensors, .pth or .pt file, got {source!r}"
        )
    if not path.is_file():
        raise FileNotFoundError(f"{source!r}: there is no such file")
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)


def download() -> pathlib.Path:
    """Return the path of torchvision's ImageNet weights in Hugging Face's cache.

    They are downloaded if the cache lacks them.

    Raises:
      ConnectionError: they cannot be downloaded; says where to get the file. Without a connection
        it is raised within seconds.
    """
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    def find(local: bool) -> pathlib.Path:
        return pathlib.Path(
            huggingface_hub.hf_hub_download(REPOSITORY, FILE_NAME, local_files_only=local)
        )

    with contextlib.suppress(LocalEntryNotFoundError):
        return find(local=True)
    try:
        if not constants.HF_HUB_OFFLINE:
            _reach(constants.ENDPOINT)
        return find(local=False)
    except OSError as error:
        raise ConnectionError(
            f"the weights 'imagenet' are not in Hugging Face's cache and cannot be fetched "
            f"({error}). Get {ADDRESS} on a machine with a connection and pass its path: "
            f"--init_from=PATH/{FILE_NAME}"
        ) from error


def _reach(address: str) -> None:
    """Raise OSError unless a server answers one request; the hub's client would keep retrying."""
    request = urllib.request.Request(address, method="HEAD")
    with contextlib.suppress(urllib.error.HTTPError):  # is an answer too
        urllib.request.urlopen(request, timeout=CONNECT_SECONDS).close()


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{str(path)!r} is not a safetensors file: {error}") from error


def _read_torch(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"reading {path.name} needs torch; install it, or pass a .safetensors file: {ADDRESS}"
        ) from error
    try:
        entries = torch.load(path, map_location="cpu", weights_only=True)
    except (EOFError, RuntimeError) as error:
        raise ValueError(f"{str(path)!r} cannot be read: {error}") from error
    except pickle.UnpicklingError as error:
        raise ValueError(f"{str(path)!r} holds more than arrays: {error}") from error
    if not isinstance(entries, dict) or not all(torch.is_tensor(v) for v in entries.values()):
        raise ValueError(f"{str(path)!r} must hold a state dict: a dictionary of tensors")
    return {key: value.detach().numpy() for key, value in entries.items()}


def _head(keys: Iterable[str]) -> list[str]:
    """The keys of the last, fully connected layer."""
    return [key for key in keys if key.startswith("fc.")]


def _refuse(source: str, what: str, keys: Iterable[str]) -> None:
    """Raise ValueError if there are any keys; ``what`` says what is wrong with them."""
    found = list(keys)
    if found:
        shown = ", ".join(found[:KEYS_SHOWN])
        rest = f" and {len(found) - KEYS_SHOWN} more" if len(found) > KEYS_SHOWN else ""
        raise ValueError(f"{source!r} is no state dict of resnext50_32x4d: it {what} {shown}{rest}")
