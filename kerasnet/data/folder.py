"""Folders of class-named folders of images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from kerasnet.data.images import open_image
from kerasnet.data.resizing import resize
from kerasnet.data.source import SIZE_WAY_OUT, checked_names
from kerasnet.data.splits import CHUNK, TEST_SEED, Size, SplitName, held_out, stratified
from kerasnet.errors import BadInputError, did_you_mean

if TYPE_CHECKING:
    from PIL import Image

    from kerasnet.data.splits import Bytes, Labels

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"})
_ORIENTATION = 0x0112
# EXIF's values, and what brings such a picture upright (Pillow's name); from 5 on, height and width
# change places.
_UPRIGHT = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270",
    7: "TRANSVERSE", 8: "ROTATE_90",
}  # fmt: skip
# In any case: `Train` is as common.
SPLITS = {
    "train": "train", "training": "train",
    "val": "validation", "valid": "validation", "validation": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip

T = TypeVar("T")


def subfolders(folder: Path) -> list[str]:
    """Return the names of a folder's folders, sorted, without hidden and private ones."""
    names = (p.name for p in folder.iterdir() if p.is_dir())
    return sorted(n for n in names if not n.startswith((".", "__")))


def divided(root: Path) -> dict[str, Path]:
    """Return the folders of splits in a folder, none where it holds the classes' themselves.

    A class may well be called `train`: beside others, it is a split's folder if it holds folders.

    Raises:
        BadInputError: two of them are the same split's, or there is none to train on.
    """
    names = subfolders(root)
    known = [root / name for name in names if name.lower() in SPLITS]
    train = [path for path in known if SPLITS[path.name.lower()] == "train"]
    if len(known) < len(names) and not any(map(subfolders, train)):
        return {}
    found: dict[str, Path] = {}
    for path in known:
        split = SPLITS[path.name.lower()]
        if split in found:
            raise BadInputError(
                f"{root}: both '{found[split].name}' and '{path.name}' would hold the images for "
                f"{split}; move one of them elsewhere"
            )
        found[split] = path
    if found and "train" not in found:
        raise BadInputError(
            f"{root}: there is a folder '{next(iter(found.values())).name}', but no 'train' beside "
            f"it; it holds {', '.join(names)}"
        )
    return found


def images_below(folder: Path) -> Iterator[Path]:
    """Yield the images in a folder and those below it, following no links to folders.

    A link may lead back up; and `Path.rglob` passes over folders that it may not read.
    """
    waiting = [str(folder)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                suffix = os.path.splitext(entry.name)[1].lower()
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif suffix not in IMAGE_SUFFIXES or entry.name.startswith("."):
                    continue
                elif os.path.isfile(entry.path):
                    yield Path(entry.path)
                elif not os.path.isdir(entry.path):
                    # Reading a pipe would never end.
                    raise BadInputError(
                        f"{entry.path} cannot be read as an image: it is a broken link, or "
                        "something else that is no file; remove it"
                    )


def _orientation(image: Image.Image) -> int:
    """Return how a camera was held, as EXIF counts it; 1, upright, where that is not plain."""
    # Of a PNG without it in front, Pillow would decode all pixels to see whether it comes behind.
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    # Pillow does not say what it raises on damage, and the picture itself may be whole.
    except Exception:  # noqa: BLE001
        return 1
    return found if found in _UPRIGHT else 1


def read_image(file: Path, size: Size | None, channels: int = 3) -> Bytes:
    """Return one image, upright, (1, height, width, channels).

    Args:
        file: the image.
        size: height and width that it is resized to, its own if None.
        channels: 3 for RGB, 1 for shades of grey.

    Raises:
        BadInputError: it cannot be read.
    """
    import numpy as np
    from PIL import Image

    with open_image(file, str(file)) as image:
        held = _orientation(image)
        upright = image.convert("RGB" if channels == 3 else "L")
        if held in _UPRIGHT:
            upright = upright.transpose(Image.Transpose[_UPRIGHT[held]])
        pixels = np.asarray(upright).reshape(1, upright.height, upright.width, channels)
    return pixels if size is None else resize(pixels, size)


def _image_size(file: Path) -> Size:
    with open_image(file, str(file)) as image:
        if _orientation(image) >= 5:
            return image.width, image.height
        return image.height, image.width


def _for_each(read: Callable[[Path], T], files: list[Path]) -> Iterator[T]:
    """Yield what `read` returns for each file, in order, at most a chunk read ahead."""
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(files), CHUNK):
            yield from pool.map(read, files[start : start + CHUNK])


class Folder:
    """A folder of class-named folders, perhaps inside folders named as in SPLITS.

    Raises:
        BadInputError: there are no classes, or no images, or too few.
    """

    channels = 3
    classes: int | None
    class_names: tuple[str, ...] | None

    def __init__(self, root: Path) -> None:
        self.where = str(root)
        splits = divided(root)
        train = splits.get("train", root)
        self._names = subfolders(train)
        if len(self._names) < 2:
            raise BadInputError(
                f"{train} must hold a folder of images for each class, at least two; "
                f"it holds {self._names or 'no folder'}"
            )
        self.class_names, self.classes = checked_names(self._names, self.where), len(self._names)
        self._files = {"train": self._listed(train)}
        self._check_every_class(train)
        for split in splits.keys() - {"train"}:
            self._files[split] = self._listed(splits[split])
        self.has_validation = "validation" in self._files
        self.held_out = "test" not in self._files
        if self.held_out:
            self._hold_out()

    def _listed(self, folder: Path) -> list[tuple[Path, int]]:
        unknown = set(subfolders(folder)) - set(self._names)
        if unknown:
            name = min(unknown)
            raise BadInputError(
                f"{folder / name}: the training images have no class '{name}'. "
                + did_you_mean(name, self._names)
            )
        found = [
            (file, label)
            for label, name in enumerate(self._names)
            if (folder / name).is_dir()
            for file in sorted(images_below(folder / name))
        ]
        if not found:
            raise BadInputError(
                f"{folder} holds no images in a folder for each class; looked for "
                f"{', '.join(sorted(IMAGE_SUFFIXES))}"
            )
        return found

    def _check_every_class(self, folder: Path) -> None:
        labels = {label for _, label in self._files["train"]}
        without = [name for i, name in enumerate(self._names) if i not in labels]
        if without:
            raise BadInputError(
                f"{folder / without[0]} holds no images to learn that class from (looked for "
                f"{', '.join(sorted(IMAGE_SUFFIXES))}); add some, or remove the folder"
            )

    def _hold_out(self) -> None:
        import numpy as np

        files = self._files["train"]
        labels = np.array([label for _, label in files], np.int64)
        test = stratified(labels, held_out(len(files)), TEST_SEED, leave=1)
        if not test.any():
            raise BadInputError(
                f"{self.where} holds {len(files)} images, too few to hold any out for testing: "
                "add more, or give a `test` folder beside `train`"
            )
        self._files["test"] = [f for f, held in zip(files, test, strict=True) if held]
        self._files["train"] = [f for f, held in zip(files, test, strict=True) if not held]

    def size(self) -> Size | None:
        """Return the size of the training images.

        Raises:
            BadInputError: they differ, or one cannot be read.
        """
        files = [file for file, _ in self._files["train"]]
        return _only(zip(files, _for_each(_image_size, files), strict=True), self.where)

    def count(self, split: SplitName) -> int:
        """Return the number of images in the split."""
        return len(self._files[split])

    def chunks(self, split: SplitName, size: Size | None) -> Iterator[tuple[Bytes, Labels]]:
        """Yield the images one by one, resized if a size is given.

        Raises:
            BadInputError: one cannot be read.
        """
        import numpy as np

        files = [file for file, _ in self._files[split]]
        read = _for_each(lambda file: read_image(file, size), files)
        for image, (_, label) in zip(read, self._files[split], strict=True):
            yield image, np.array([label], np.int64)

    def place(self, split: SplitName, index: int) -> str:
        """Return the image's file."""
        return str(self._files[split][index][0])


def _only(sizes: Iterable[tuple[Path, Size]], where: str) -> Size:
    first: tuple[Path, Size] | None = None
    for file, size in sizes:
        first = first or (file, size)
        if size != first[1]:
            raise BadInputError(
                f"{where}: the images differ in size ({first[0].name} is {first[1][0]}×"
                f"{first[1][1]}, {file.name} is {size[0]}×{size[1]}, height × width): "
                + SIZE_WAY_OUT
            )
    assert first is not None
    return first[1]
