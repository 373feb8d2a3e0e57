"""Read image sets of tensorflow-datasets, without TensorFlow."""

from __future__ import annotations

import concurrent.futures
import difflib
import hashlib
import json
import os
import pathlib
import re
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import logging

from jaxreg.data import cache, prepare
from jaxreg.data.square import to_square

# Part of the cache's fingerprint: increase it when the decoding below changes its results.
_DECODING = 1
_CHUNK = 512  # encoded images that are read at once
_NAME = re.compile(r"[A-Za-z_]\w*(/[\w.\-]+)?(:[\d.*]+)?")


def load(name: str, split: str, size: int) -> np.ndarray:
    """Load a split of an image set of tensorflow-datasets.

    The set is read from ``$TFDS_DATA_DIR`` or the default folder (``~/tensorflow_datasets``), in
    the array_record or tfrecord format. An absent set is downloaded and prepared if TensorFlow is
    installed and there is a network. The decoded array is kept in the set's folder, or in the
    user's cache folder if that is read-only, and is used until the set's files change.

    Args:
      name: as `tensorflow_datasets.builder` takes it: "cifar10", "name/config", "name:version".
      split: a split of the set. "test" means "validation" if the set has only the latter.
      size: height and width of the result in pixels.

    Returns:
      ``(N, size, size, 3)`` uint8 RGB, in the order of the set's files.

    Raises:
      ValueError: the set is unknown, or has no such split or no images.
      FileNotFoundError: the set is not prepared and cannot be prepared now; says what to do.
    """
    builder = _prepared_builder(name)
    split = _split_of_set(builder, split)
    key = _image_key(builder)
    count = int(builder.info.splits[split].num_examples)
    folder = pathlib.Path(builder.data_path)
    relative = pathlib.Path("tfds", builder.info.full_name)
    return cache.cached(
        [folder, cache.user_folder() / relative],
        f"jaxreg-{split}-{size}",
        _fingerprint(builder, split, size, key),
        (count, size, size, 3),
        lambda: _decode(builder, split, size, key),
    )


def _prepared_builder(name: str) -> Any:
    """Return the builder of a set, preparing it if need be; the errors are those of `load`."""
    import tensorflow_datasets as tfds

    if not _NAME.fullmatch(name):  # tfds looks up others, such as huggingface:NAME, on the network
        raise ValueError(_unknown_set(name))
    # Passed explicitly, because tfds reads the variable only when it is imported.
    data_dir = os.environ.get("TFDS_DATA_DIR") or None
    if data_dir is not None and not os.path.isdir(os.path.expanduser(data_dir)):
        logging.warning("TFDS_DATA_DIR=%s is not a folder", data_dir)
    try:
        with prepare.quiet():
            builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        raise ValueError(_unknown_set(name)) from None
    except (AssertionError, ValueError) as error:  # no such version or config
        reason = str(error).rpartition('}": ')[2].strip()
        raise ValueError(f"source: tensorflow-datasets refuses {name!r}: {reason}") from error
    if not builder.info.splits:
        builder = prepare.prepare(builder, name)
    return builder


def _unknown_set(name: str) -> str:
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    parts = [re.sub(r"\W", "", part) for part in re.split(r"[:/]", name.lower())]
    close = [match for part in parts for match in difflib.get_close_matches(part, known)][:3]
    hint = "its catalogue lists them: https://www.tensorflow.org/datasets/catalog"
    if close:
        hint = f"did you mean {', '.join(close)}?"
    return (
        f"source: tensorflow-datasets knows no set {name!r}; {hint} "
        "(other sources: photos, random, folder:PATH, arrays:PATH)"
    )


def _split_of_set(builder: Any, split: str) -> str:
    available = list(builder.info.splits)
    if split in available:
        return split
    if split == "test" and "validation" in available:
        logging.info("%s has no test split: using validation", builder.info.full_name)
        return "validation"
    raise ValueError(f"split: {builder.info.full_name} has {', '.join(available)}, got {split!r}")


def _image_key(builder: Any) -> str:
    """The name of the feature that holds the image."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    keys = [key for key, feature in features.items() if type(feature) is tfds.features.Image]
    if not keys:
        raise ValueError(
            f"source: {builder.info.full_name} is no image set; its features: {', '.join(features)}"
        )
    return "image" if "image" in keys else keys[0]


def _fingerprint(builder: Any, split: str, size: int, key: str) -> str:
    """A text that changes with the set's version, its files and the decoding."""
    info = builder.info.splits[split]
    files = []
    for path in map(pathlib.Path, info.filepaths):
        if not path.exists():
            raise FileNotFoundError(
                f"{builder.info.full_name} is incomplete: {path} is missing; "
                "remove the folder and prepare the set again"
            )
        stat = path.stat()
        files.append([path.name, stat.st_size, stat.st_mtime_ns])
    made_from = [_DECODING, builder.info.full_name, split, size, key, list(info.shard_lengths)]
    return hashlib.sha256(json.dumps([*made_from, files]).encode()).hexdigest()[:16]


def _decode(builder: Any, split: str, size: int, key: str) -> np.ndarray:
    count = int(builder.info.splits[split].num_examples)
    logging.info("Decoding %d images of %s %s", count, builder.info.full_name, split)
    out = np.empty((count, size, size, 3), np.uint8)
    done = 0
    with concurrent.futures.ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        pending = []
        for encoded in _encoded_chunks(builder, split, key):
            if done + len(encoded) > count:
                raise ValueError(f"{builder.info.full_name} {split}: has more than {count} images")
            target = out[done : done + len(encoded)]
            pending.append(pool.submit(_decode_into, target, encoded, done))
            done += len(encoded)
            if len(pending) > 16:  # limits the encoded images in memory
                pending.pop(0).result()
        for result in pending:
            result.result()
    if done != count:
        raise ValueError(f"{builder.info.full_name} {split}: has {done} of {count} images")
    return out


def _decode_into(out: np.ndarray, encoded: Sequence[bytes], first: int) -> None:
    import cv2

    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION  # as tfds and TensorFlow decode
    for i, data in enumerate(encoded):
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        if image is None:
            raise ValueError(f"image {first + i} cannot be decoded")
        out[i] = to_square(image, size=out.shape[1])[..., ::-1]


def _encoded_chunks(builder: Any, split: str, key: str) -> Iterator[list[bytes]]:
    """Yield the encoded images of a split, up to `_CHUNK` at a time."""
    import tensorflow_datasets as tfds

    decoders = {key: tfds.decode.SkipDecoding()}
    file_format = builder.info.file_format.value
    if file_format == "array_record":
        source = builder.as_data_source(split, decoders=decoders)
        for start in range(0, len(source), _CHUNK):
            indices = list(range(start, min(start + _CHUNK, len(source))))
            yield [example[key] for example in source.__getitems__(indices)]
    elif file_format == "tfrecord":
        chunk = []
        for path in builder.info.splits[split].filepaths:
            for record in tfrecord_records(pathlib.Path(path)):
                example = builder.info.features.deserialize_example_np(record, decoders=decoders)
                chunk.append(example[key])
                if len(chunk) == _CHUNK:
                    yield chunk
                    chunk = []
        if chunk:
            yield chunk
    else:
        raise ValueError(
            f"source: {builder.info.full_name} is stored as {file_format} in {builder.data_path}; "
            "array_record and tfrecord can be read. Move it away and prepare it again: "
            f"{prepare.command(builder.info.full_name)}"
        )


def tfrecord_records(path: pathlib.Path) -> Iterator[bytes]:
    """Yield the records of a TFRECORD file, in order.

    The format is a sequence of: length (little-endian uint64), its checksum (uint32), the record,
    its checksum (uint32). The checksums are not verified.

    Raises:
      ValueError: the file ends within a record.
    """
    with path.open("rb") as file:
        while header := file.read(12):
            length = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else -1
            body = file.read(length + 4) if 0 <= length < path.stat().st_size else b""
            if length < 0 or len(body) != length + 4:
                raise ValueError(f"{path}: ends inside a record; prepare the set again")
            yield body[:-4]
