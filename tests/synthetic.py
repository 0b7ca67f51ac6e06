"""Small data sets in every form that is read, made on the spot."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kerasnet import schema
from kerasnet.data import places

CIFAR = schema.Dataset(
    source=schema.DatasetSource(type="tfds", name="cifar10"),
    classes=10,
    archives=dict.fromkeys(["cifar-10-binary.tar.gz", "cifar-10-python.tar.gz"]),
)


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with an empty home, no data folders in its environment, and no network."""
    home = tmp_path / "home"
    home.mkdir()
    for name in ("KERASNET_DATA_DIR", "TFDS_DATA_DIR", "KERAS_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(places, "network_reaches", lambda host, timeout=3.0: False)
    return home


def pictures(n: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, (n, 32, 32, 3)).astype(np.uint8)


# ---------------------------------------------------------------------------- prepared sets


def encode(image: np.ndarray, kind: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, kind)
    return out.getvalue()


def describe(
    place: Path,
    splits: dict[str, int],
    *,
    version: str = "3.0.2",
    classes: int = 10,
    supervised: bool = True,
    shape: tuple[int, ...] = (32, 32, 3),
    size: int = 0,
) -> Path:
    """Write the JSON files of a prepared data set, and shards as long as they must be at least."""
    folder = place / "cifar10" / version
    folder.mkdir(parents=True)
    info: dict[str, Any] = {
        "name": "cifar10",
        "version": version,
        "fileFormat": "tfrecord",
        "splits": [
            {
                "name": name,
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "shardLengths": [str(n)],
                "numBytes": str(size),
            }
            for name, n in splits.items()
        ],
    }
    if supervised:
        items = [{"featureKey": "image"}, {"featureKey": "label"}]
        info["supervisedKeys"] = {"tuple": {"items": items}}
    image = {"image": {"dtype": "uint8", "shape": {"dimensions": [str(d) for d in shape]}}}
    label = {"classLabel": {"numClasses": str(classes)}}
    base = "tensorflow_datasets.core.features."
    image["pythonClassName"] = base + "image_feature.Image"
    label["pythonClassName"] = base + "class_label_feature.ClassLabel"
    features = {
        "pythonClassName": base + "features_dict.FeaturesDict",
        "featuresDict": {"features": {"image": image, "label": label}},
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (folder / "features.json").write_text(json.dumps(features))
    names = "\n".join(f"class {i}" for i in range(classes))
    (folder / "label.labels.txt").write_text(names + "\n")
    for name, n in splits.items():
        shard(folder, name).write_bytes(b"\0" * 16 * n)
    return folder


def shard(folder: Path, split: str) -> Path:
    return folder / f"cifar10-{split}.tfrecord-00000-of-00001"


def fill(folder: Path, split: str, images: list[bytes], labels: list[int]) -> None:
    import tensorflow as tf

    feature = tf.train.Feature
    with tf.io.TFRecordWriter(str(shard(folder, split))) as writer:
        for image, label in zip(images, labels, strict=True):
            fields = {
                "image": feature(bytes_list=tf.train.BytesList(value=[image])),
                "label": feature(int64_list=tf.train.Int64List(value=[label])),
            }
            example = tf.train.Example(features=tf.train.Features(feature=fields))
            writer.write(example.SerializeToString())


def prepare(
    place: Path, n: int = 20, kind: str = "PNG", splits: tuple[str, ...] = ("train", "test")
) -> dict[str, np.ndarray]:
    folder = describe(place, dict.fromkeys(splits, n))
    images = {split: pictures(n, seed) for seed, split in enumerate(splits)}
    for split, found in images.items():
        fill(folder, split, [encode(i, kind) for i in found], [k % 10 for k in range(n)])
    return images


# ---------------------------------------------------------------------------- archives


def binary_record(images: np.ndarray, labels: list[int], before: bytes = b"") -> bytes:
    flat = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return b"".join(
        before + bytes([k]) + row.tobytes() for k, row in zip(labels, flat, strict=True)
    )


def python_batch(images: np.ndarray, labels: list[int], key: bytes = b"labels") -> bytes:
    flat = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return pickle.dumps({b"data": np.ascontiguousarray(flat), key: labels}, protocol=2)


def cifar_members(layout: str) -> dict[str, bytes]:
    """Five batches of four images and four test images."""
    labels = [0, 3, 9, 5]
    batch = binary_record if layout == "binary" else python_batch
    end = ".bin" if layout == "binary" else ""
    members = {f"data_batch_{i}{end}": batch(pictures(4, i), labels) for i in (4, 3, 2, 5, 1)}
    members[f"test_batch{end}"] = batch(pictures(4, 6), labels)
    names = [f"name{i}" for i in range(10)]
    if layout == "binary":
        members["batches.meta.txt"] = "\n".join([*names, ""]).encode()
    else:
        named = {b"label_names": [n.encode() for n in names]}
        members["batches.meta"] = pickle.dumps(named, protocol=2)
    return members


def unpack(folder: Path, members: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in members.items():
        (folder / name).write_bytes(content)


def pack(file: Path, folder: str, members: dict[str, bytes]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w:gz") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return file


def binary_archive(place: Path) -> Path:
    file = place / "cifar-10-binary.tar.gz"
    return pack(file, "cifar-10-batches-bin", cifar_members("binary"))


# ---------------------------------------------------------------------------- folders


def paint(file: Path, colour: int, size: tuple[int, int] = (32, 32), mode: str = "RGB") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size[::-1], (colour,) * len(mode) if len(mode) > 1 else colour).save(file)


def paint_classes(folder: Path, *names: str, each: int = 20) -> str:
    """Make a folder of classes of pictures that no two have the colour of."""
    for number, name in enumerate(names):
        for i in range(each):
            paint(folder / name / f"{i}.png", 80 * number + i)
    return str(folder)
