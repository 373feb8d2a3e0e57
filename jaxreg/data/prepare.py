"""Download and prepare a set of tensorflow-datasets, or say within seconds why it cannot be."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pathlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from absl import logging

# Seconds to wait for an answer from the network; tfds alone would retry for minutes.
NETWORK_TIMEOUT = 5.0
# Attempts of tfds at a download, instead of its 10, which take 205 s.
DOWNLOAD_RETRIES = 3
# The store where tfds first looks for prepared copies.
_TFDS_STORE = "https://storage.googleapis.com/tfds-data"


def command(name: str) -> str:
    """Return the shell command that prepares a set."""
    return (
        'python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{name}', file_format='array_record').download_and_prepare()\""
    )


def prepare(builder: Any, name: str) -> Any:
    """Download and prepare an absent set, and return a builder that reads it.

    Args:
      builder: builder of the set, whose files are missing.
      name: name of the set as the user wrote it.

    Raises:
      FileNotFoundError: TensorFlow or the network is missing, the set must be fetched by hand, or
        the download failed; says what to do.
    """
    absent = _absent(builder, name)
    if importlib.util.find_spec("tensorflow") is None:
        raise FileNotFoundError(
            f"{absent} Preparing it takes TensorFlow, once: pip install 'jaxreg[prepare]', then "
            f"run the same command again or {command(name)}. Reading it afterwards does not. "
            f"{_ELSEWHERE}"
        )
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        raise FileNotFoundError(
            f"{absent} It has to be fetched by hand: "
            f"{' '.join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())} Then {command(name)}"
        )
    if not network_reachable([_TFDS_STORE, *_homepages(builder)], NETWORK_TIMEOUT):
        raise FileNotFoundError(
            f"{absent} It cannot be downloaded either: no network. On a machine with one, "
            f"{command(name)}, and copy the folder. {_ELSEWHERE}"
        )
    return _download(builder, name, absent)


_ELSEWHERE = (
    "Where a prepared copy exists, set TFDS_DATA_DIR to the folder that holds it; "
    "without one, the sources photos and folder:PATH need no download."
)


def _download(builder: Any, name: str, absent: str) -> Any:
    import tensorflow as tf
    import tensorflow_datasets as tfds

    tf.config.set_visible_devices([], "GPU")  # TensorFlow would take the memory JAX needs
    data_dir = os.environ.get("TFDS_DATA_DIR") or None
    logging.info("Downloading and preparing %s in %s", name, builder.data_path)
    try:
        with _few_retries():
            builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
            builder.download_and_prepare()
    except (OSError, tfds.download.DownloadError) as error:
        raise FileNotFoundError(
            f"{absent} Preparing it failed: {type(error).__name__}: {error}. Try {command(name)}. "
            f"{_ELSEWHERE}"
        ) from error
    with quiet():
        return tfds.builder(name, data_dir=data_dir)


def _absent(builder: Any, name: str) -> str:
    folder = pathlib.Path(builder.data_path)
    versions = sorted(path.parent.name for path in folder.parent.glob("*/dataset_info.json"))
    found = ""
    if versions:
        found = f" There is version {', '.join(versions)}: ask for {name}:{versions[-1]}."
    return f"{name} is not prepared: no {folder}.{found}"


def _homepages(builder: Any) -> list[str]:
    try:
        return [builder.info.homepage] if builder.info.homepage.startswith("http") else []
    except AttributeError:
        return []


def network_reachable(urls: Sequence[str], seconds: float) -> bool:
    """Whether any of the addresses answers, with any status, within ``seconds``.

    Proxies of the environment are used, as by the download itself.
    """
    answered = threading.Semaphore(0)
    results: list[bool] = []

    def ask(url: str) -> None:
        import requests

        try:
            requests.head(url, timeout=seconds)
            results.append(True)
        except requests.RequestException:
            results.append(False)
        answered.release()

    # Daemon threads: a hanging resolver must delay neither the answer nor the exit.
    for url in urls:
        threading.Thread(target=ask, args=(url,), daemon=True).start()
    for _ in urls:
        if not answered.acquire(timeout=seconds) or True in results:
            break
    return True in results


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence tfds' message that a folder is missing; our error says more."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


@contextlib.contextmanager
def _few_retries() -> Iterator[None]:
    # tfds has no option for it. If a later version moves the constant, its default stays.
    try:
        from tensorflow_datasets.core.download import downloader
    except ImportError:
        yield
        return
    before = getattr(downloader, "MAX_RETRIES", None)
    if before is not None:
        downloader.MAX_RETRIES = DOWNLOAD_RETRIES
    try:
        yield
    finally:
        if before is not None:
            downloader.MAX_RETRIES = before
