"""With which token somebody looks at a run: one that is given, or one that was remembered for its address.

A remembered token lies in a file of mode 0600 in this user's state folder, one for
each controller. It is sent only to the controller whose key it names, so an address
that leads elsewhere later gets nothing.
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
    "on the controller's machine: `curtail token create --home HOME --role viewer --out viewer.token`; then add"
    " --token-file viewer.token here, with --remember to give it only once. On that machine itself"
    " `curtail status --home HOME` needs none"
)
"""What to do without a token that is good for looking."""


def place(folder: Path, url: str) -> Path:
    """The file of the token for the controller at `url`."""
    parts = urlsplit(url.lower())
    where = f"{parts.hostname or ''}:{parts.port or (443 if parts.scheme == 'https' else 80)}"
    name = re.sub(r"[^a-z0-9.-]", "_", where)[:80]
    return folder / "viewer" / f"{name}-{hashlib.sha256(where.encode()).hexdigest()[:8]}.token"


def recall(folder: Path, url: str) -> str | None:
    """The token that was remembered for `url`; None: there is none. Raises: AuthError: it cannot be read."""
    path = place(folder, url)
    try:
        return path.read_text(encoding="ascii").strip() or None
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise AuthError(f"cannot read the remembered token {path}: {error}", f"delete it; then {GET_ONE}") from None


def remember(folder: Path, url: str, token: str) -> Path:
    """Keep a token that was good at `url`; where. Raises: DiskError."""
    path, disk = place(folder, url), SystemDisk()
    disk.folder("VIEWER", path.parent, 0o700)
    disk.replace("VIEWER_TOKEN", path, str(parse_token(token)).encode(), 0o600)
    return path


def at_home(home: Path) -> tuple[str, str]:
    """Address and operator's token of the controller that runs in `home` on this machine.

    Raises: NotFound: no run there, or its token cannot be found. Refused: no controller runs there.
    """
    from controller.auth.token_files import check_run, reach

    check_run(home)
    absent = Refused(f"no controller runs in {home}", "start it, or try again in a moment if it just does")
    url, token = reach(home, absent)
    return url, str(token)


@contextmanager
def explaining(path: Path | None) -> Iterator[None]:
    """Errors of the block say how to come to a good token.

    Args: path: the file of the remembered token that is used; None: another one is, or none.
    """
    try:
        yield
    except AuthError as error:
        if path is None:
            raise
        raise AuthError(
            f"{error.message} (with the token remembered in {path})", f"delete it; then {GET_ONE}"
        ) from None
