"""Viewer tokens that `curtail status --remember` stores per controller, and how to get one.

A stored token is a file with mode 0600 in this user's state folder. It is sent only to
the controller whose key it pins, so another server at the same address never gets it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from curtail.errors import AuthError, Refused
from curtail.security.token import parse_token
from curtail.system.disk import SystemDisk

GET_ONE = (
    "on the controller's machine run `curtail token create --home HOME --role viewer --out viewer.token`; then add"
    " --token-file viewer.token here, and --remember to store it. On the controller's machine"
    " `curtail status --home HOME` needs no token"
)
"""Remedy if there is no valid viewer token."""


def place(folder: Path, url: str) -> Path:
    """The file for the token of the controller at `url`."""
    parts = urlsplit(url.lower())
    where = f"{parts.hostname or ''}:{parts.port or (443 if parts.scheme == 'https' else 80)}"
    name = re.sub(r"[^a-z0-9.-]", "_", where)[:80]
    return folder / "viewer" / f"{name}-{hashlib.sha256(where.encode()).hexdigest()[:8]}.token"


def recall(folder: Path, url: str) -> str | None:
    """The stored token for `url`, or None. Raises: AuthError: it cannot be read."""
    path = place(folder, url)
    try:
        return path.read_text(encoding="ascii").strip() or None
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise AuthError(f"cannot read the stored token {path}: {error}", f"delete it; then {GET_ONE}") from None


def remember(folder: Path, url: str, token: str) -> Path:
    """Store a token that was valid at `url`; returns its file. Raises: DiskError."""
    path, disk = place(folder, url), SystemDisk()
    disk.folder("VIEWER", path.parent, 0o700)
    disk.replace("VIEWER_TOKEN", path, str(parse_token(token)).encode(), 0o600)
    return path


def at_home(home: Path) -> tuple[str, str]:
    """URL and operator's token of the controller that runs in `home` on this machine.

    Raises: NotFound: no run there, or its token is missing. Refused: no controller runs there.
    """
    from controller.auth.token_files import check_run, reach

    check_run(home)
    absent = Refused(f"no controller runs in {home}", "start it; if it is just starting, try again in a moment")
    url, token = reach(home, absent)
    return url, str(token)


@contextmanager
def explaining(path: Path | None) -> Iterator[None]:
    """Extend authentication errors of the block with how to get a valid token.

    Args: path: the file of the stored token in use; None: another token is in use, or none.
    """
    try:
        yield
    except AuthError as error:
        if path is None:
            raise
        raise AuthError(f"{error.message} (with the token stored in {path})", f"delete it; then {GET_ONE}") from None
