"""Find a method of registration by its name.

A name is looked up in this order: a built-in method; a plug-in, which any installed package may
register in the entry-point group ``jaxreg.methods``; a trained network (one of the package, a
checkpoint folder, or a file that ``python -m jaxreg.export`` wrote); a user's own estimator as
``module:function``.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import glob
import importlib
import importlib.metadata
import os
from typing import Any

import jax

from jaxreg.geometry import RigidTransform
from jaxreg.network_files import find_network
from jaxreg.result import Estimator, Registration
from jaxreg.similarity import judge

GROUP = "jaxreg.methods"
# Name -> module:function of its estimator, which is imported only when needed.
BUILT_IN = {
    "compact": "jaxreg.learned:compact",
    "compact+refine": "jaxreg.hybrid:compact_refine",
    "constant": "jaxreg.methods:constant",
    "direct": "jaxreg.registration:direct_estimator",
}


@jax.jit
def constant(fixed: jax.Array, moving: jax.Array) -> Registration:
    """Answer "nothing moved" for every pair: the baseline that any other method has to beat."""
    return judge(fixed, moving, RigidTransform.identity((fixed.shape[0],)))


def method_names() -> list[str]:
    """List the names of all built-in methods and plug-ins, sorted.

    `jaxreg.register` takes any of them as ``method``, besides trained networks and
    ``module:function`` (`find_method`).

    >>> {"compact", "compact+refine", "constant", "direct"} <= set(method_names())
    True
    """
    return sorted({*BUILT_IN, *_plug_ins()})


@functools.cache
def _plug_ins() -> dict[str, str]:
    """Plug-ins, name -> ``module:function``; cached, as the look-up takes milliseconds."""
    found = importlib.metadata.entry_points(group=GROUP)
    return {plug_in.name: f"{plug_in.module}:{plug_in.attr}" for plug_in in found}


def _import(name: str, location: str) -> Any:
    """Import the object at ``module:attribute``; ValueError if that fails, with the reason."""
    module, _, attribute = location.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"method {name!r} cannot be loaded: {error}") from error
    except Exception as error:  # the module may be a user's, with any error
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"method {name!r} cannot be loaded: {reason}") from error
    return found


def find_method(name: str | os.PathLike[str]) -> Estimator:
    """Find the estimator with a name.

    Args:
      name: a built-in method or plug-in (`method_names`), a network that comes with the package, a
        checkpoint folder, a ``.safetensors`` file of `jaxreg.export`, or ``module:function``.

    Returns:
      A function from batches of fixed and moving images, float32 ``(N, H, W, C)`` with intensities
      in 0..255, to their batched `Registration`.

    Raises:
      ValueError: there is no such method (the message lists those there are), or it cannot be
        loaded.

    >>> find_method("constant") is constant
    True
    """
    if not isinstance(name, str | os.PathLike):
        raise ValueError(f"method must be a name, got {name!r}")
    name = os.fspath(name)
    network = find_network(name)
    if name in BUILT_IN:
        estimator = _import(name, BUILT_IN[name])
    elif name in _plug_ins():
        estimator = _import(name, _plug_ins()[name])
    elif network:
        estimator = _trained(os.path.realpath(network), _last_change(network))
    elif ":" in name and all(part.isidentifier() for part in name.replace(":", ".").split(".")):
        estimator = _import(name, name)
    else:
        names = method_names()
        near = " or ".join(difflib.get_close_matches(name, names, 3))
        raise ValueError(
            f"unknown method {name!r}{f', did you mean {near}?' if near else '.'} "
            f"There are {', '.join(names)}, jaxreg.load's networks, and module:function"
        )
    if not callable(estimator):
        raise ValueError(f"method {name!r} is a {type(estimator).__name__}, not a function")
    return estimator


def _last_change(path: str | os.PathLike[str]) -> int:
    """When a file, or a folder's newest checkpoint, last changed, in ns."""
    changes = [os.stat(path).st_mtime_ns]
    for step in glob.glob(os.path.join(glob.escape(os.fspath(path)), "checkpoints", "*")):
        with contextlib.suppress(FileNotFoundError):  # a training deletes its oldest checkpoint
            changes.append(os.stat(step).st_mtime_ns)
    return max(changes)


@functools.lru_cache(maxsize=4)
def _trained(path: str, changed: int) -> Estimator:
    """The estimator of the network in a checkpoint folder or an exported file.

    Cached, so that a second call neither reads nor compiles it again unless it has ``changed``.
    """
    del changed
    try:
        # Imported here: training is the layer above this one, and Flax takes long to import.
        from jaxreg.training.loading import load

        return load(path).estimate
    except (ImportError, OSError, ValueError, KeyError) as error:
        raise ValueError(f"method {path!r} is no usable trained network: {error}") from error
