"""Between a site's job and the controller: files, sent in parts and named by their SHA-256."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BlobOffer:
    """Job -> controller, POST /v1/blobs: reserves before bytes are sent."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class BlobStatus:
    """Controller -> job: which parts are still missing."""

    sha256: str
    size: int
    part_bytes: int
    missing: tuple[int, ...]
    complete: bool
