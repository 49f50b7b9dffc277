"""A safetensors file written piece by piece, and mapped arrays let go of, so that no weight set is in memory.

Decides nothing about bytes: the header is that of `nanochat.weights`, so a file
made here equals one that `write_tensors` makes of the same arrays. No torch.
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

_FLUSH_BYTES = 128 * 2**20  # after so many the disk is told to begin; it then works beside the arithmetic


class TensorFile:
    """One file under construction, in a temporary place until `publish`.

    Args: layout: key -> (type, shape) of every array; disk, op: who publishes it, and under which purpose name.
    Raises: CheckpointError: a type that is not stored. DiskError, here and from all methods.
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
        # not `with`: it lives as long as the file, and `discard` ends it
        self._beside = ThreadPoolExecutor(1, "flush")
        try:
            self._write(0, memoryview(self.header))
        except DiskError:
            self.discard()
            raise

    def write(self, key: str, first_row: int, rows: np.ndarray) -> None:
        """Put rows of one array, `first_row` being the index of the first, in their place."""
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
        """Wait for the disk; its error must not be lost, since the system reports it only once."""
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
        """Close; delete what was not published."""
        self._beside.shutdown()
        os.close(self._file)
        self._temp.unlink(missing_ok=True)  # gone already if it was published

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()


def release(array: np.ndarray) -> None:
    """Give the memory of a mapped array back; its values are read from the file again when needed.

    An array that does not map a file is left alone.
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
