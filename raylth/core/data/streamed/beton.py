"""FFCV's file format (.beton, version 2), read without FFCV: sizes, labels, and the bytes of single samples.

A file that was cut short or is something else is named in one line before any loader meets it; and from here the loaders
other than FFCV have their images.
"""

import hashlib
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from pyarrow import ArrowInvalid, NativeFile

from raylth.core.data.dataset import DataError, MissingData
from raylth.core.data.streamed.files import locate_file

__all__ = ["HEADER", "JPEG", "RAW", "SAMPLE", "Beton"]

VERSION = 2
JPEG, RAW = 0, 1  # how an image is stored
BLOCK, BLOCKS, READS = 2**16, 1024, 16  # bytes that a fingerprint reads at once, of how many places, how many at a time
INT, IMAGE = 1, 2  # FFCV's numbers of the two kinds of fields

HEADER = np.dtype(
    [("version", "<u2"), ("fields", "<u2"), ("page", "<u4"), ("samples", "<u8"), ("allocations", "<u8")], align=True
)
FIELD = np.dtype([("kind", "<u1"), ("name", ("<u1", 16)), ("arguments", ("<u1", (1024,)))], align=True)
STORED = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("pointer", "<u8")])
SAMPLE = np.dtype([("image", STORED), ("label", "<i8")], align=True)
ALLOCATION = np.dtype([("sample", "<u8"), ("pointer", "<u8"), ("size", "<u8")])


class Beton:
    """One file of images with labels. `stored` (N,) has mode, width, height and pointer of each image, `labels` (N,) int64.

    The file lies on a disk, or in a bucket, where all but its images can be read. Raises DataError with the path and what is
    wrong when it is not one of version 2 with an image and a label for each sample, or was not written to its end.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        try:
            system, inside = locate_file(self.path)
            with system.open_input_file(inside) as file:
                self._open(file)
        except FileNotFoundError as error:
            raise MissingData(f"{self.path}: no such file; `python -m raylth.data imagenet SRC DST` writes it") from error
        except (OSError, ArrowInvalid) as error:
            raise DataError(f"{self.path}: cannot be read: {str(error).splitlines()[0]}") from error
        self._data: np.ndarray | None = None

    def _open(self, file: NativeFile) -> None:
        self.size = file.size()
        header = self._read(file, HEADER, 1, 0)[0]
        if header["version"] != VERSION:
            raise DataError(
                f"{self.path}: is not a .beton file of version {VERSION} (it begins with {int(header['version'])})"
            )
        fields = self._read(file, FIELD, int(header["fields"]), HEADER.itemsize)
        kinds = fields["kind"].tolist()
        if kinds != [IMAGE, INT]:
            raise DataError(f"{self.path}: has fields of the kinds {kinds}, not an image and a label ({[IMAGE, INT]})")
        if not HEADER.itemsize < header["allocations"] <= self.size:
            raise DataError(f"{self.path}: is incomplete: write it again")
        self.samples_at = HEADER.itemsize + fields.nbytes  # byte where the table of samples begins
        samples = self._read(file, SAMPLE, int(header["samples"]), self.samples_at)
        table = int(header["allocations"])
        allocations = self._read(file, ALLOCATION, (self.size - table) // ALLOCATION.itemsize, table)
        self.stored, self.labels = samples["image"], samples["label"].astype(np.int64)
        order = np.argsort(allocations["pointer"], kind="stable")
        self._pointers, self._sizes = allocations["pointer"][order], allocations["size"][order]
        at = np.searchsorted(self._pointers, self.stored["pointer"])
        known = at < len(self._pointers)
        if not known.all() or (self._pointers[at] != self.stored["pointer"]).any():
            raise DataError(f"{self.path}: is truncated: not all of its {len(samples):,} samples are there")
        self.bytes = self._sizes[at]

    def __len__(self) -> int:
        return len(self.labels)

    def _read(self, file: NativeFile, dtype: np.dtype, count: int, offset: int) -> np.ndarray:
        if offset + count * dtype.itemsize > self.size:
            raise DataError(f"{self.path}: is truncated: {self.size:,} bytes hold no {count:,} records at byte {offset:,}")
        return np.frombuffer(file.read_at(count * dtype.itemsize, offset), dtype=dtype, count=count)

    def encoded(self, index: int) -> np.ndarray:
        """Return the stored bytes of a sample: a JPEG, or its pixels (see `stored`)."""
        if self._data is None:
            self._data = np.memmap(self.path, dtype=np.uint8, mode="r")
        start = int(self.stored["pointer"][index])
        return self._data[start : start + int(self.bytes[index])]

    def image(self, index: int) -> np.ndarray:
        """Return a sample's pixels (H, W, 3) uint8; DataError when its JPEG cannot be decoded."""
        from PIL import Image

        stored, data = self.stored[index], self.encoded(index)
        if stored["mode"] == RAW:
            return data.reshape(int(stored["height"]), int(stored["width"]), 3)
        try:
            with Image.open(io.BytesIO(data.tobytes())) as image:
                return np.asarray(image.convert("RGB"))
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path}: sample {index} cannot be decoded: {error}") from error

    def fingerprint(self) -> str:
        """Return the SHA-256 of sizes, labels, allocations and contents, by which another file cannot pass for this one.

        The contents are all bytes of a small file, and `BLOCKS` pieces of a large one, evenly spread.
        """
        digest = hashlib.sha256(str(self.size).encode())
        for array in (self.stored, self.labels, self._pointers, self._sizes):
            digest.update(np.ascontiguousarray(array).tobytes())
        count = min(BLOCKS, -(-self.size // BLOCK))
        starts = np.linspace(0, max(self.size - BLOCK, 0), count).astype(np.int64).tolist()
        system, inside = locate_file(self.path)
        with system.open_input_file(inside) as file, ThreadPoolExecutor(READS) as pool:
            for piece in pool.map(lambda start: file.read_at(BLOCK, start), starts):
                digest.update(piece)
        return digest.hexdigest()
