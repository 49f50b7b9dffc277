"""`curtail ledger check`: does the data ledger of a controller's store balance?

Reads the store at one moment, also while its controller runs, and never writes.
The invariants are the store's; here is what they need beside SQL: that every
version's files are what the store says.
"""

from __future__ import annotations

from pathlib import Path

from controller.files.versions import Versions
from controller.store import reading
from controller.store.rows import VersionRow
from curtail.errors import CheckpointError, CurtailError, NotFound
from curtail.system.disk import file_sha256
from curtail.system.home_files import STORE, UPDATE_FILE, VERSIONS
from nanochat.checkpoint import MODEL_FILE

Finding = tuple[str, str | None]
"""What should hold, and its first violation or None."""


def check(home: Path, weights: bool) -> int:
    """Print what holds, one line each; returns the exit code.

    Args: weights: hash the files of all kept versions, too.
    Raises: CurtailError: names the first violation. NotFound: `home` has no store.
    """
    findings = look(home, weights)
    for what, problem in findings:
        print(f"{'holds' if problem is None else 'BROKEN':<8}{what}{'' if problem is None else ': ' + problem}")
    broken = next(((what, problem) for what, problem in findings if problem is not None), None)
    if broken is not None:
        raise CurtailError(f"the ledger in {home} is broken: {broken[1]}", "keep the folder and report it")
    return 0


def look(home: Path, weights: bool) -> list[Finding]:
    """Every invariant with its first violation, of the store as it is now.

    Raises: NotFound, CurtailError: there is no store, or it cannot be read.
    """
    with reading(home / STORE) as tx:
        if tx.run() is None:
            raise NotFound(f"the store in {home} holds no run yet", "start its controller first")
        findings: list[Finding] = list(tx.ledger())
        kept = tx.kept_versions()
    if weights:
        findings += [(f"version {row.version} is on disk as in the store", _files(home, row)) for row in kept]
    return findings


def _files(home: Path, row: VersionRow) -> str | None:
    versions = Versions(home / VERSIONS)
    folder = versions.path(row.version)
    try:
        for file, expected in ((MODEL_FILE, row.weights), (UPDATE_FILE, row.updates)):
            if expected and file_sha256(folder / file) != expected:
                return f"{folder / file} is damaged"
        versions.verify(row.version, row.digest)
    except (OSError, CurtailError) as error:
        return None if _cleared(home, row) else _sentence(error, folder)
    return None


def _cleared(home: Path, row: VersionRow) -> bool:
    """Did a running controller clear the version away meanwhile?"""
    with reading(home / STORE) as tx:
        return row.version not in [other.version for other in tx.kept_versions()]


def _sentence(error: Exception, folder: Path) -> str:
    return error.message if isinstance(error, CheckpointError) else f"{folder} cannot be read: {error}"
