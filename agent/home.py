"""The agent's folder: identity, key, credential, and a lock against a second agent.

These survive a restart: a stable identity, the key, the credential, the
controller's CA certificate, the machine's fencing token, and the crew of the last
job. Everything else in the folder (jobs, cache) can be deleted at any time. The
job reads the key and the credential too, so they are separate files that only
their owner can read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from curtail.errors import Refused
from curtail.security.signing import AgentKey
from curtail.system.disk import Disk, clear_leftovers, disk_error
from curtail.system.home_files import AGENT_LOCK, IDENTITY

KEPT_JOBS = 5
"""Number of job folders that are kept for their logs."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this agent is, and what it last joined."""

    agent: str  # 32 hex digits, never changes
    site: str = ""
    run: str = ""
    fence: int = -1
    heartbeat_s: float = 2.0
    machines: int = 1  # machines of the site, as reported at the join
    address: str = ""  # where the site's other machines reach this one
    port: int = 0
    crew: str = ""  # crew of the latest job


@dataclass(frozen=True, slots=True)
class Home:
    """Where an agent keeps its files."""

    path: Path

    @property
    def credential_file(self) -> Path:
        return self.path / "credential"

    @property
    def key_file(self) -> Path:
        return self.path / "key.pem"

    @property
    def authority_file(self) -> Path:
        return self.path / "ca.pem"

    @property
    def cache(self) -> Path:
        return self.path / "cache"

    def job_folder(self, job: str) -> Path:
        return self.path / "jobs" / job

    def credential(self) -> str | None:
        """The stored credential, None if there is none."""
        try:
            return self.credential_file.read_text(encoding="utf-8").strip() or None
        except (OSError, UnicodeDecodeError):
            return None

    def key(self, disk: Disk) -> AgentKey:
        """This agent's key, generated at the first start; it never leaves the folder.

        Raises: AuthError: the file does not contain a key. DiskError.
        """
        try:
            return AgentKey(self.key_file.read_bytes())
        except FileNotFoundError:
            key = AgentKey()
            disk.replace("KEY", self.key_file, key.pem, 0o600)
            return key
        except OSError as error:
            raise disk_error("read", self.key_file, error) from error

    def keep_credential(self, credential: str, disk: Disk) -> None:
        """Replace the stored credential. Raises: DiskError."""
        disk.replace("CREDENTIAL", self.credential_file, credential.encode(), 0o600)

    def identity(self, disk: Disk) -> Identity:
        """The stored identity; a new one at the first start or if the file is damaged.

        Raises: DiskError.
        """
        try:
            value = json.loads((self.path / IDENTITY).read_text(encoding="utf-8"))
            identity = Identity(**value)
            if len(identity.agent) == 32 and isinstance(identity.fence, int):
                return identity
        except (OSError, ValueError, TypeError):
            pass
        identity = Identity(secrets.token_hex(16))
        self._write_identity(identity, disk)
        return identity

    def remember(self, identity: Identity, credential: str, disk: Disk) -> None:
        """Store the result of a join, the credential last: if it is missing or old, the key gets a new one.

        Raises: DiskError.
        """
        self._write_identity(identity, disk)
        disk.replace("CREDENTIAL", self.credential_file, credential.encode(), 0o600)

    def note(self, identity: Identity, disk: Disk) -> None:
        """Store an identity that changed without a join.

        Raises: DiskError.
        """
        self._write_identity(identity, disk)

    def _write_identity(self, identity: Identity, disk: Disk) -> None:
        data = json.dumps(dataclasses.asdict(identity)).encode()
        disk.replace("IDENTITY", self.path / IDENTITY, data, 0o600)

    def forget_old_jobs(self) -> None:
        """Delete all but the newest job folders, and weights left by a killed job. Call only while no job runs.

        Errors are ignored.
        """
        with contextlib.suppress(OSError):
            folders = sorted((self.path / "jobs").iterdir(), key=lambda folder: folder.stat().st_mtime)
            for folder in folders[:-KEPT_JOBS]:
                shutil.rmtree(folder, ignore_errors=True)
            for left in (self.path / "jobs").glob("*/*.safetensors*"):
                left.unlink()


@contextlib.contextmanager
def open_home(path: Path, disk: Disk) -> Iterator[Home]:
    """The agent's folder, created if needed and locked against other agents while the block runs.

    Raises: Refused: another agent runs in it. DiskError.
    """
    path = path.resolve()  # jobs run in another working directory
    disk.folder("AGENT_HOME", path, 0o700)
    try:
        descriptor = os.open(path / AGENT_LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise disk_error("use the folder", path, error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            other = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            raise Refused(
                f"another agent is running in {path}" + (f" (process {other})" if other else ""),
                "stop it, or choose another folder with --home",
            ) from None
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        except OSError as error:
            raise disk_error("write", path / AGENT_LOCK, error) from error
        clear_leftovers(path)
        yield Home(path)
    finally:
        os.close(descriptor)
