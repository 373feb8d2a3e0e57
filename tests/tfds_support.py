"""Sets of tensorflow-datasets as they lie on disk: genuine, small, made without TensorFlow."""

import json
import struct

import cv2
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_generated_pb2 as protos

from jaxreg.data import prepare
from jaxreg.data.square import to_square


def empty_folders(tmp_path, monkeypatch):
    """An empty data folder and an empty cache folder; no network."""
    data = tmp_path / "data"
    data.mkdir()
    monkeypatch.setenv("TFDS_DATA_DIR", str(data))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(prepare, "network_reachable", lambda urls, seconds: False)
    return data


def images(count=7, shape=(12, 16, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


def squares(pictures, size):
    return np.stack([to_square(picture, size) for picture in pictures])


def example(image, label):
    stored = image[..., ::-1] if image.shape[-1] == 3 else image
    record = protos.Example()
    features = record.features.feature
    features["image"].bytes_list.value.append(cv2.imencode(".png", stored)[1].tobytes())
    features["label"].int64_list.value.append(label)
    return record.SerializeToString()


def write_shard(path, records, file_format):
    if file_format == "array_record":
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for record in records:
            writer.write(record)
        writer.close()
        return
    with path.open("wb") as file:
        for record in records:  # the checksums, left zero, are not verified
            file.write(struct.pack("<QI", len(record), 0) + record + bytes(4))


def write_set(root, splits, name="tiny", version="1.0.0", file_format="array_record", shards=1):
    """A prepared set as tensorflow-datasets lays it out."""
    folder = root / name / version
    folder.mkdir(parents=True)
    infos = []
    for split, pictures in splits.items():
        records = [example(image, i % 3) for i, image in enumerate(pictures)]
        parts = [list(part) for part in np.array_split(np.array(records, object), shards)]
        for i, part in enumerate(parts):
            file = folder / f"{name}-{split}.{file_format}-{i:05d}-of-{shards:05d}"
            write_shard(file, part, file_format)
        infos.append(
            {
                "name": split,
                "shardLengths": [str(len(part)) for part in parts],
                "numBytes": str(sum(map(len, records))),
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
        )
    info = {"name": name, "version": version, "fileFormat": file_format, "splits": infos}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    channels = str(next(iter(splits.values())).shape[-1])
    module = "tensorflow_datasets.core.features"
    image = {"dtype": "uint8", "shape": {"dimensions": ["-1", "-1", channels]}}
    features = {
        "image": {"image": image, "pythonClassName": f"{module}.image_feature.Image"},
        "label": {
            "classLabel": {"numClasses": "3"},
            "pythonClassName": f"{module}.class_label_feature.ClassLabel",
        },
    }
    (folder / "features.json").write_text(
        json.dumps(
            {
                "featuresDict": {"features": features},
                "pythonClassName": f"{module}.features_dict.FeaturesDict",
            }
        )
    )
    return folder
