"""`curtail ledger check`: checks the data ledger's invariants and the files of all versions.

Reads a snapshot of the store, also while its controller runs, and never writes.
The store checks the invariants with SQL. This module also checks that every
version's files match the store.
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
"""An invariant, and its first violation or None."""


def check(home: Path, weights: bool) -> int:
    """Print one line for each invariant. Returns: the exit code.

    Args: weights: also hash the files of all kept versions.
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
    """Every invariant with its first violation, in the present state of the store.

    Raises: NotFound, CurtailError: there is no store, or it cannot be read.
    """
    with reading(home / STORE) as tx:
        if tx.run() is None:
            raise NotFound(f"the store in {home} has no run yet", "start its controller first")
        findings: list[Finding] = list(tx.ledger())
        kept = tx.kept_versions()
    if weights:
        findings += [(f"version {row.version} on disk matches the store", _files(home, row)) for row in kept]
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
    """Did a running controller delete the version meanwhile?"""
    with reading(home / STORE) as tx:
        return row.version not in [other.version for other in tx.kept_versions()]


def _sentence(error: Exception, folder: Path) -> str:
    return error.message if isinstance(error, CheckpointError) else f"{folder} cannot be read: {error}"
