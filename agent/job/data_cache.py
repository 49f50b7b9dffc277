"""The site's cache of token files: each is fetched once, named by its hash, and shared between runs.

Decides where files lie and which are missing; `agent.http.transfer` moves the bytes.
A run's folder holds the manifest and a link to each file under its name. The whole cache
may be deleted between two jobs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from agent.http.client import Control
from agent.http.transfer import Stop, download
from curtail.errors import DataError
from curtail.system.clock import Clock
from curtail.system.disk import Disk, disk_error, file_sha256
from nanochat.manifest import MANIFEST_NAME, Manifest, TokenFile


def data_folder(cache: Path, manifest_sha256: str) -> Path:
    """The folder in which `fetch_data` puts the data whose manifest has that hash."""
    return cache / "data" / manifest_sha256


def fetch_data(
    control: Control,
    manifest_sha256: str,
    cache: Path,
    disk: Disk,
    clock: Clock,
    stop: Stop,
    log: Callable[[str], None],
) -> Path:
    """Fetch the manifest of that hash and its training files, as far as they are missing; returns their folder.

    Args: stop: ends it between two pieces. log: told, in one line, which file is fetched.

    Raises: Stopped, Unreachable, NotFound, DataError, DiskError.
    """
    folder, blobs = data_folder(cache, manifest_sha256), cache / "tokens"
    for path in (folder, blobs):
        disk.folder("DATA_FOLDER", path)
    manifest_path = folder / MANIFEST_NAME
    if not manifest_path.exists() or file_sha256(manifest_path) != manifest_sha256:
        download(control, manifest_sha256, manifest_path, disk, clock=clock, stop=stop, kind=DataError)
    manifest = Manifest.from_json(manifest_path.read_bytes())
    missing = [file for file in manifest.files_of("train") if not _there(folder / file.name, file)]
    for number, file in enumerate(missing, 1):
        blob = blobs / file.sha256
        if not _there(blob, file):
            log(f"fetching {file.name}, {file.size / 1e6:.1f} MB ({number} of {len(missing)})")
            download(control, file.sha256, blob, disk, size=file.size, clock=clock, stop=stop, kind=DataError)
        _link(blob, folder / file.name)
    return folder


def _there(path: Path, file: TokenFile) -> bool:
    # A file gets its name only after its hash was checked; its size guards against later truncation.
    try:
        return path.stat().st_size == file.size
    except OSError:
        return False


def _link(blob: Path, path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
        try:
            os.link(blob, path)
        except OSError:  # a file system without hard links
            path.symlink_to(blob.resolve())
    except OSError as error:
        raise disk_error("write", path, error) from error
