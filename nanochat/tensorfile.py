"""Writes a safetensors file piece by piece, so that the weights are never completely in memory.

The header is that of `nanochat.weights`, so the file equals one that `write_tensors`
writes from the same arrays. `release` frees the memory of mapped arrays. No torch.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from math import prod
from pathlib import Path
from types import TracebackType

import numpy as np

from curtail.errors import DiskError
from curtail.system.disk import Disk, disk_error
from nanochat.weights import Layout, array_bytes, file_header

_FLUSH_BYTES = 128 * 2**20  # a flush starts after this many bytes, so that the disk writes during the arithmetic


class TensorFile:
    """A file that is being written, under a temporary name until `publish`.

    Args: layout: key -> (type, shape) of every array. disk, op: publish the file, and the name of the operation.
    Raises: CheckpointError: a type that cannot be stored. DiskError, here and from all methods.
    """

    def __init__(
        self, path: Path, layout: Layout, disk: Disk, op: str, metadata: Mapping[str, str] | None = None
    ) -> None:
        self.path, self.header = path, file_header(layout, metadata)[0]
        self._starts = {key: len(self.header) + start for key, start in file_header(layout, metadata)[1].items()}
        self._row_bytes = {key: np.dtype(kind).itemsize * prod(shape[1:]) for key, (kind, shape) in layout.items()}
        self._disk, self._op = disk, op
        self._temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._since_flush = 0
        self._flushing: Future[None] | None = None
        try:
            self._file = os.open(self._temp, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        except OSError as error:
            raise disk_error("write", path, error) from error
        # Without `with`, because it lives as long as this object; `discard` ends it.
        self._beside = ThreadPoolExecutor(1, "flush")
        try:
            self._write(0, memoryview(self.header))
        except DiskError:
            self.discard()
            raise

    def write(self, key: str, first_row: int, rows: np.ndarray) -> None:
        """Write rows of one array, from index `first_row` on."""
        self._write(self._starts[key] + first_row * self._row_bytes[key], array_bytes(rows))

    def _write(self, at: int, data: memoryview) -> None:
        try:
            while data:
                done = os.pwrite(self._file, data, at)
                at, data = at + done, data[done:]
                self._since_flush += done
            if self._since_flush >= _FLUSH_BYTES and (self._flushing is None or self._flushing.done()):
                self._flushed()
                self._flushing, self._since_flush = self._beside.submit(os.fdatasync, self._file), 0
        except OSError as error:
            raise disk_error("write", self.path, error) from error

    def _flushed(self) -> None:
        """Wait for the flush. Its error must not be lost, because the system reports it only once."""
        if self._flushing is not None:
            self._flushing.result()

    def publish(self) -> None:
        """Make the file durable under its name."""
        try:
            self._flushed()
        except OSError as error:
            raise disk_error("write", self.path, error) from error
        self._disk.publish(self._op, self._temp, self.path)

    def discard(self) -> None:
        """Close the file, and delete it if it was not published."""
        self._beside.shutdown()
        os.close(self._file)
        self._temp.unlink(missing_ok=True)  # missing if it was published

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()


def release(array: np.ndarray) -> None:
    """Free the memory of a mapped array; its values are read from the file again when needed.

    Arrays that do not map a file are unchanged.
    """
    owner: object = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, memoryview):
        owner = owner.obj
    if not isinstance(owner, mmap.mmap) or not array.nbytes:
        return
    start = array.__array_interface__["data"][0] - np.frombuffer(owner, np.uint8).__array_interface__["data"][0]
    first = start - start % mmap.PAGESIZE
    owner.madvise(mmap.MADV_DONTNEED, first, start + array.nbytes - first)
