"""Reading data sets that tensorflow-datasets has prepared, perhaps on a stranger's machine."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kerasnet import backend
from kerasnet.data.description import AGAIN, RECORD_OVERHEAD, Records, describe
from kerasnet.data.images import vetted
from kerasnet.data.splits import (
    CHUNK,
    TEST_FRACTION,
    TEST_SEED,
    Size,
    SplitName,
    held_out,
    stratified,
)
from kerasnet.errors import BadInputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from kerasnet.data.splits import Bytes, Labels

# What is read or decoded at once.
CHUNK_BYTES = 2**28


def _largest_record(file: Path, count: int) -> int:
    """Return the bytes of the largest record, having looked at every record's length.

    TensorFlow believes a length, and takes a file that ends between two records for a whole one.

    Raises:
        BadInputError: the file does not hold `count` whole records.
    """
    largest = position = number = 0
    with file.open("rb") as stream:
        size = stream.seek(0, 2)
        while position < size and number <= count:
            stream.seek(position)
            header = stream.read(8).ljust(8, b"\xff")
            (length,) = struct.unpack("<Q", header)
            position += RECORD_OVERHEAD + length
            if length > CHUNK_BYTES or position > size:
                raise BadInputError(
                    f"{file}: record {number} does not end where the file does: it is truncated "
                    f"or damaged; {AGAIN}"
                )
            largest, number = max(largest, length), number + 1
    if number != count:
        more = "more than" if number > count else f"{number}, not"
        raise BadInputError(
            f"{file} holds {more} {count} records, which is what dataset_info.json says: {AGAIN}"
        )
    return largest


def _reason(error: Any) -> str:
    """Return what TensorFlow says of a record, without the names of its nodes."""
    text = str(error.message).split("BadInputError: ")[-1].split("\n")[0]
    nodes = r"\{\{.*?\}\}\s*|Error in user-defined function .* iterator: \S+ |\[Op:.*"
    return re.sub(nodes, "", text).strip()


class Prepared:
    """A data set that tensorflow-datasets has prepared, described by its JSON files.

    Args:
        folder: that of a version, which holds dataset_info.json.

    Raises:
        BadInputError: as `describe`.
    """

    has_validation = False

    def __init__(self, folder: Path) -> None:
        self.folder, self.where = folder, str(folder)
        found = describe(folder)
        self._keys, self._size, self.channels = found.keys, found.size, found.channels
        self.classes: int | None = found.classes
        self.class_names = found.class_names
        self._splits = {"train": found.train, "test": found.test}

    @cached_property
    def jpeg(self) -> bool:
        """Whether the first image is a JPEG; features.json need not say."""
        with self._splits["train"].files[0].open("rb") as f:
            start = f.read(2**16)
        jpeg, png = start.find(b"\xff\xd8\xff"), start.find(b"\x89PNG\r\n")
        return jpeg >= 0 and (png < 0 or jpeg < png)

    @property
    def remark(self) -> str:
        """What the reader of a result should know about how the images are stored and split."""
        train, test = self._splits["train"], self._splits["test"]
        remark = "; stored as JPEG" if self.jpeg else ""
        if test is train:
            remark += f"; no test split: {TEST_FRACTION:.0%} of train held out for it"
        elif test.name != "test":
            remark += f"; no test split: '{test.name}' stands for it"
        return remark

    def size(self) -> Size | None:
        """Return the height and width that features.json gives, None if they vary."""
        return self._size

    def count(self, split: SplitName) -> int:
        """Return the number of images; labels are read where one split serves as two.

        Raises:
            BadInputError: these cannot be read.
        """
        mask = self._mask(split)
        return sum(self._splits[split].lengths) if mask is None else int(mask.sum())

    def place(self, split: SplitName, index: int) -> str:
        """Return the shard and the record's number in it."""
        mask = self._mask(split)
        stored = index if mask is None else int(mask.nonzero()[0][index])
        return self._place(self._splits[split], stored)

    def _place(self, records: Records, index: int) -> str:
        for file, length in zip(records.files, records.lengths, strict=True):
            if index < length:
                return f"{file}: record {index}"
            index -= length
        return f"{self.folder}: split '{records.name}'"

    def _mask(self, split: SplitName) -> NDArray[np.bool_] | None:
        """Return which examples of the stored split are meant, if not all."""
        if self._splits["train"] is not self._splits["test"]:
            return None
        return self._test_mask if split == "test" else ~self._test_mask

    @cached_property
    def _test_mask(self) -> NDArray[np.bool_]:
        import numpy as np

        records = self._splits["train"]
        batches = self._read(records, lambda encoded: encoded.map(lambda image, label: (label,)))
        labels = np.concatenate([label for (label,) in batches])
        return stratified(labels, held_out(len(labels)), TEST_SEED)

    def chunks(self, split: SplitName, size: Size | None) -> Iterator[tuple[Bytes, Labels]]:
        """Yield images and labels, never resized.

        Raises:
            BadInputError: a record is damaged, with its shard and number.
        """
        mask, start = self._mask(split), 0
        for images, labels in self._read(self._splits[split], self._decoded):
            stop = start + len(labels)
            if mask is None:
                yield images, labels
            elif mask[start:stop].any():
                yield images[mask[start:stop]], labels[mask[start:stop]]
            start = stop

    def _read(self, records: Records, make: Callable[[Any], Any]) -> Iterator[tuple[Any, ...]]:
        """Yield what `make` makes of the split's batches, labels last.

        Raises:
            BadInputError: a record is damaged, with its shard and number.
        """
        import tensorflow as tf

        chunk = self._chunk(records)

        def batches(start: int, size: int) -> Any:
            with tf.device("CPU:0"):
                found = make(self._encoded(records, start, size))
                return found.with_options(backend.untuned()).as_numpy_iterator()

        done = 0
        try:
            for batch in batches(0, chunk):
                done += len(batch[-1])
                yield batch
        except tf.errors.OpError as e:
            error = e
        else:
            return
        # The record is among the next ones, which are read again one by one.
        try:
            for _ in batches(done, 1):
                done += 1
        except tf.errors.OpError as e:
            error = e
        place = self._place(records, done)
        raise BadInputError(f"{place} is damaged ({_reason(error)}): {AGAIN}") from error

    def _chunk(self, records: Records) -> int:
        """Return how many records are read at once."""
        largest = math.prod(self._size or (1, 1)) * self.channels
        for file, length in zip(records.files, records.lengths, strict=True):
            largest = max(largest, _largest_record(file, length))
        return max(1, min(CHUNK, CHUNK_BYTES // largest))

    def _encoded(self, records: Records, start: int, chunk: int) -> Any:
        """Return a tf.data.Dataset of batches of encoded images and labels, from `start` on."""
        import tensorflow as tf

        image, label = self._keys
        parsed = {
            image: tf.io.FixedLenFeature([], tf.string),
            label: tf.io.FixedLenFeature([], tf.int64),
        }

        def parse(serialised: Any) -> tuple[Any, Any]:
            example = tf.io.parse_example(serialised, parsed)
            return example[image], example[label]

        # A batch parsed at once, past TFDS's example by example, takes a tenth of the time.
        stored = tf.data.TFRecordDataset([str(f) for f in records.files]).skip(start)
        return stored.batch(chunk).map(parse, num_parallel_calls=backend.cores())

    def _decoded(self, encoded: Any) -> Any:
        """Return batches of images, uint8, and labels; single ones where sizes vary."""
        import numpy as np
        import tensorflow as tf

        vet = partial(vetted, size=self._size, channels=self.channels)
        decode = _decode_jpeg if self.jpeg and self.channels in (1, 3) else _decode_image

        def vet_all(contents: Any) -> Any:
            return np.array([vet(content) for content in contents], object)

        def one(image: Any) -> Any:
            image = decode(image, channels=self.channels)
            return tf.ensure_shape(image, (*(self._size or (None, None)), self.channels))

        def whole(images: Any, labels: Any) -> tuple[Any, Any]:
            images = tf.numpy_function(vet_all, [images], tf.string, stateful=False)
            images = tf.ensure_shape(images, labels.shape)
            return tf.map_fn(one, images, fn_output_signature=tf.uint8), labels

        if self._size is None:
            # Decoded one by one, for images of several sizes make no batch.
            encoded = encoded.unbatch().batch(1)
        batches = encoded.map(whole, num_parallel_calls=backend.cores())
        return batches.prefetch(2 if self._size else 2 * backend.cores())


def _decode_image(content: Any, channels: int) -> Any:
    import tensorflow as tf

    return tf.io.decode_image(content, channels=channels, expand_animations=False)


def _decode_jpeg(content: Any, channels: int) -> Any:
    import tensorflow as tf

    # TensorFlow's default, and so `tfds.load`, takes a short cut that shifts red and blue by more
    # than one level of 255 on average; this gives the pixels other decoders give.
    return tf.io.decode_jpeg(content, channels=channels, dct_method="INTEGER_ACCURATE")
