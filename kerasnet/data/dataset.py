"""Opening a data set and reading its splits."""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import sys
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kerasnet import schema
from kerasnet.data.archive import LAYOUTS, Archive
from kerasnet.data.digits import Digits
from kerasnet.data.folder import Folder
from kerasnet.data.places import (
    Located,
    asked_shape,
    dataset_spec,
    find_prepared,
    locate,
    search_places,
)
from kerasnet.data.prepared import Prepared
from kerasnet.data.resizing import resize
from kerasnet.data.source import SIZE_WAY_OUT, Source
from kerasnet.data.splits import CHUNK, Shape, Size, Split, SplitName, buffer
from kerasnet.errors import BadInputError, EnvironmentFaultError

if TYPE_CHECKING:
    from kerasnet.data.splits import Bytes, Labels

MEMORY_SHARE = 0.6


def _writable(places: list[Path]) -> Path:
    for place in places:
        with contextlib.suppress(OSError):
            place.mkdir(parents=True, exist_ok=True)
            if os.access(place, os.W_OK):
                return place
    raise EnvironmentFaultError(
        f"no folder to download into: none of {', '.join(map(str, places))} can be written; "
        "give one with --data-dir DIR"
    )


def _import_tfds() -> Any:
    """Import tensorflow-datasets without the lines it logs and prints."""
    import logging

    logging.getLogger("absl").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(sys.stderr):
        return importlib.import_module("tensorflow_datasets")


def _download(name: str, spec: schema.Dataset, data_dir: str | Path | None) -> Located:
    """Download and prepare with tensorflow-datasets, then look again."""
    source = spec.source.name
    assert source is not None
    place = _writable(search_places(data_dir))
    tfds = _import_tfds()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            tfds.builder(source, data_dir=str(place)).download_and_prepare()
    except (tfds.core.DatasetNotFoundError, AssertionError) as e:
        raise BadInputError(f"tensorflow-datasets has no '{source}' to download: {e}") from e
    except (OSError, tfds.download.DownloadError) as e:
        raise EnvironmentFaultError(f"data set '{name}' could not be downloaded: {e}") from e
    found = find_prepared(source, [place], spec)
    if found is None:
        raise EnvironmentFaultError(f"tensorflow-datasets left no '{source}' in {place}")
    return found


def _source(located: Located, spec: schema.Dataset) -> Source:
    path = located.path
    if located.kind == "digits":
        return Digits()
    assert path is not None
    if located.kind == "tfds":
        return Prepared(path)
    if located.kind == "folder":
        return Folder(path)
    for name, layout in LAYOUTS.items():
        if path.name in (name, layout.folder, f"{layout.folder}-target_archive"):
            return Archive(path, name, spec.archives.get(name))
    raise BadInputError(f"{path} is not named like a CIFAR archive: {', '.join(LAYOUTS)}")


def _memory() -> int | None:
    """Return the bytes of memory this process may use, None where the system does not say."""
    bounds = []
    with contextlib.suppress(ValueError, OSError, AttributeError):
        bounds.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with contextlib.suppress(ValueError, OSError):
        bounds.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(bounds, default=None)


class ImageData:
    """A data set that was found; its images are read when `load` asks for them.

    Attributes:
        name: as it was asked for.
        spec: its registry entry, or what stands for one.
        located: where it was found.
        image_shape: height, width, channels of the images `load` gives.
        classes: their number.
    """

    def __init__(
        self, name: str, spec: schema.Dataset, located: Located, size: Size | None = None
    ) -> None:
        """Open the data set; `size` (height, width) overrides the spec's and the stored one.

        Raises:
            BadInputError: the spec contradicts what is stored, or the images differ in size.
        """
        self.name, self.spec, self.located = name, spec, located
        self._source = _source(located, spec)
        self._held: Split | None = None
        self._measured: tuple[list[float], list[float]] | None = None
        wanted = asked_shape(spec)
        self._given = size or (wanted[:2] if wanted else None)
        stored = self._given or self._source.size()
        if stored is None:
            raise BadInputError(f"{self._source.where}: the images differ in size: {SIZE_WAY_OUT}")
        self.image_shape: Shape = (*stored, wanted[2] if wanted else self._source.channels)
        self.classes = self._check_classes()
        self._check_channels()

    def _check_classes(self) -> int:
        stored, spec, where = self._source.classes, self.spec, self._source.where
        if stored is None or (spec.classes or stored) != stored:
            raise BadInputError(f"{where} has {stored} classes, the registry says {spec.classes}")
        names = spec.class_names
        if names is not None and len(names) != stored:
            raise BadInputError(f"{where} has {stored} classes, the registry names {len(names)}")
        if names and self.located.kind == "folder" and tuple(names) != self._source.class_names:
            raise BadInputError(
                f"{where} has the classes {self._source.class_names}, which are not the registry's "
                f"{tuple(names)}"
            )
        return stored

    def _check_channels(self) -> None:
        channels, stored = self.image_shape[2], self._source.channels
        if stored not in (1, channels):
            raise BadInputError(
                f"{self._source.where} has images of {stored} channels, the registry says "
                f"{channels}; only images of one channel can be given more"
            )
        if self.spec.mean is not None and len(self.spec.mean) not in (1, channels):
            raise BadInputError(
                f"data set '{self.name}': `mean` has {len(self.spec.mean)} channels, "
                f"the images {channels}"
            )

    @property
    def has_validation(self) -> bool:
        """Whether the data set brings validation images of its own."""
        return self._source.has_validation

    @property
    def named(self) -> bool:
        """Whether anything names the classes, so that they are more than numbers."""
        return bool(self.spec.class_names or self._source.class_names)

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """One name a class; the labels themselves where nothing names them."""
        named = tuple(self.spec.class_names or ()) or self._source.class_names
        return named or tuple(str(i) for i in range(self.classes))

    @cached_property
    def inference(self) -> schema.Inference:
        """How an image becomes the model's input: mean and standard deviation per channel.

        Of pixels scaled to [0, 1]; measured on the training images, which are read for it, where
        the spec gives none.
        """
        channels = self.image_shape[2]
        if self.spec.mean is not None and self.spec.std is not None:
            mean, std = list(self.spec.mean), list(self.spec.std)
            if len(mean) < channels:
                mean, std = mean * channels, std * channels
        else:
            if self._measured is None:
                self._held = self._load("train")
            assert self._measured is not None
            mean, std = self._measured
        height, width, _ = self.image_shape
        names = list(self.class_names)
        return schema.Inference(mean=mean, std=std, resize=[height, width], class_names=names)

    def load(self, split: SplitName) -> Split:
        """Read a split: images uint8 (n, *image_shape), labels int64 (n,), in a fixed order.

        Raises:
            BadInputError: there is no such split, it is damaged, a label is out of range, an image
                has another size while none was asked for, or it would not fit into memory.
        """
        if split == "train" and self._held is not None:
            # Kept from measuring the mean; not needed by two owners.
            held, self._held = self._held, None
            return held
        return self._load(split)

    def check(self, split: SplitName) -> None:
        """Read a split as `load` does, and keep nothing of it.

        Raises:
            BadInputError: as `load`.
        """
        for _ in self._parts(split, None):
            continue

    def _load(self, split: SplitName) -> Split:
        import numpy as np

        count = self.count(split)
        images, labels = buffer((count, *self.image_shape)), np.empty(count, np.int64)
        for start, part, part_labels in self._parts(split, self._given):
            stop = start + len(part_labels)
            # One channel is spread over all by assignment.
            images[start:stop] = resize(part, self.image_shape[:2])
            labels[start:stop] = part_labels
        if split == "train" and self.spec.mean is None:
            # Here, so that it is read once whichever of images and mean is asked for first.
            self._measured = moments(images)
        return Split(images, labels)

    def _parts(self, split: SplitName, size: Size | None) -> Iterator[tuple[int, Bytes, Labels]]:
        """Yield the place of the first image, images and labels, all of them checked."""
        done, count = 0, self.count(split)
        for images, labels in self._source.chunks(split, size):
            self._check_size(images, split, done)
            self._check_labels(labels, split, done)
            done += len(labels)
            if done > count:
                break
            yield done - len(labels), images, labels
        if done != count:
            raise BadInputError(
                f"{self._source.where}: split '{split}' holds {done} images, not {count}: it is "
                "damaged; copy or prepare it again"
            )

    def count(self, split: SplitName) -> int:
        """Return the number of images in a split that is there and fits into memory.

        Raises:
            BadInputError: there is no such split, it is empty, or it would not fit.
        """
        if split not in ("train", "test") and not (split == "validation" and self.has_validation):
            raise BadInputError(
                f"data set '{self.name}' has no split '{split}' of its own; "
                "`split_validation` makes one from its training images"
            )
        count, have = self._source.count(split), _memory()
        if not count:
            raise BadInputError(f"{self._source.where}: split '{split}' holds no images")
        need = count * math.prod(self.image_shape)
        if have is not None and need > MEMORY_SHARE * have:
            raise BadInputError(
                f"data set '{self.name}': {count} images of {self.image_shape} need "
                f"{need / 2**30:.1f} GiB, more than {MEMORY_SHARE:.0%} of this machine's "
                f"{have / 2**30:.1f} GiB: ask for smaller images, with --input-size or `size=` "
                "in Python, or use fewer of them"
            )
        return count

    def _check_size(self, images: Bytes, split: SplitName, first: int) -> None:
        size, shape = self.image_shape[:2], images.shape[1:3]
        if self._given is None and shape != size:
            raise BadInputError(
                f"{self._source.place(split, first)} is an image of {shape[0]}×{shape[1]}, "
                f"not {size[0]}×{size[1]} as the others: {SIZE_WAY_OUT}"
            )

    def _check_labels(self, labels: Labels, split: SplitName, first: int) -> None:
        outside = ((labels < 0) | (labels >= self.classes)).nonzero()[0]
        if len(outside):
            raise BadInputError(
                f"{self._source.place(split, first + int(outside[0]))} has the label "
                f"{labels[outside[0]]}, but labels must be 0 to {self.classes - 1}: it is damaged; "
                "copy or prepare it again"
            )


def moments(images: Bytes) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation per channel of pixels scaled to [0, 1].

    From counts of the 256 levels: exact, and without a float copy of the images.
    """
    import numpy as np

    if not len(images):
        raise BadInputError("there are no training images to measure mean and std on")
    levels = np.arange(256) / 255
    means, stds = [], []
    for channel in range(images.shape[3]):
        counts = np.zeros(256, np.int64)
        for i in range(0, len(images), CHUNK):
            part = images[i : i + CHUNK, :, :, channel]
            counts += np.bincount(part.ravel(), minlength=256)
        mean = float(counts @ levels / counts.sum())
        variance = float(counts @ (levels - mean) ** 2 / counts.sum())
        means.append(mean)
        # A channel that never changes carries nothing; any divisor but zero will do.
        stds.append(math.sqrt(variance) if variance > 1e-12 else 1.0)
    return means, stds


def load_dataset(
    name: str = "cifar10",
    *,
    data_dir: str | Path | None = None,
    spec: schema.Dataset | None = None,
    datasets: Mapping[str, schema.Dataset] | None = None,
    size: Size | None = None,
) -> ImageData:
    """Find and open a data set, downloading it if it is nowhere on this machine.

    Args:
        name: of a registry entry, a folder, or a name in tensorflow-datasets.
        data_dir: where to look first; see `search_places` for where else.
        spec: what is known of the data set, in place of the registry's entry.
        datasets: registry entries to look the name up in, in place of the built-in ones.
        size: height and width in pixels that images are resized to; the spec's if not given, and
            the stored ones if the spec has none.

    Raises:
        BadInputError: it is not found, or it is incomplete, damaged, or not labelled images.
        EnvironmentFaultError: it could not be downloaded or written.
    """
    if spec is None:
        if datasets is None:
            from kerasnet.registry import load_registry

            datasets = load_registry().datasets
        spec = dataset_spec(name, datasets)
    located = locate(name, spec, data_dir)
    if located.kind == "download":
        located = _download(name, spec, data_dir)
    return ImageData(name, spec, located, size)
