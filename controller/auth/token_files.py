"""The token files in the controller's folder: `join-token` for agents, `operator-token` for commands.

The tokens have the form of kubeadm's bootstrap tokens plus the pin of the CA (see
`curtail.security.token`). Unlike kubeadm's they do not expire: they are valid until
they are replaced, and whoever can read the folder is trusted. A file that is
missing, damaged, or pins another CA is replaced, and its old token is revoked.
"""

from __future__ import annotations

import contextlib
import json
from functools import partial
from pathlib import Path

from controller.auth import credentials, tokens
from controller.auth.credentials import Role
from controller.store import Store, Transaction
from curtail.errors import AuthError, CurtailError, NotFound
from curtail.security.token import Token, parse_token
from curtail.system.disk import Disk, disk_error
from curtail.system.home_files import ADDRESS, JOIN_TOKEN, OPERATOR_TOKEN, STORE
from curtail.wire import TokenRequest

JOIN, OPERATOR = JOIN_TOKEN, OPERATOR_TOKEN
ROLE_OF = {JOIN: Role.AGENT, OPERATOR: Role.OPERATOR}


def ensure(home: Path, store: Store, pin: str | None, now: float, disk: Disk) -> None:
    """Create the files that are missing or invalid. Args: now: Unix time. Raises: DiskError."""
    for name, role in ROLE_OF.items():
        path = home / name
        held = read(path)
        if held is not None and held.pin == pin and store.call(partial(_good, held=held, now=now)):
            continue
        request = TokenRequest(role.value, "", "", None, None, name)
        made = store.call(partial(tokens.create, request=request, pin=pin, now=now))
        write(path, made.token, disk)
        if held is not None:
            store.call(partial(_revoke, held=held, now=now))


def read(path: Path) -> Token | None:
    """The token in a file; None if there is no valid one. Raises: DiskError: the file cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        return None
    except OSError as error:
        raise disk_error("read", path, error) from error
    with contextlib.suppress(AuthError):
        return parse_token(text)
    return None


def check_run(home: Path) -> None:
    """Raises: NotFound: there is no run in `home`."""
    if not (home / STORE).is_file():
        raise NotFound(f"there is no run in {home}", "give the folder that was given to `curtail controller start`")


def reach(home: Path, absent: CurtailError) -> tuple[str, Token]:
    """The address and the operator token of the controller that runs in `home` on this machine.

    Args: absent: the error to raise if no controller runs there.
    Raises: NotFound: there is no token. DiskError: it cannot be read.
    """
    try:
        url = str(json.loads((home / ADDRESS).read_text(encoding="utf-8"))["url"])
    except (OSError, ValueError, KeyError, TypeError):
        raise absent from None
    token = read(home / OPERATOR)
    if token is None:
        raise NotFound(f"there is no token in {home / OPERATOR}", "the controller creates it when it starts")
    return url, token


def write(path: Path, text: str, disk: Disk) -> None:
    """Write a token file that only its owner can read. Raises: DiskError."""
    disk.replace("JOIN_TOKEN", path, f"{text}\n".encode(), mode=0o600)


def _good(tx: Transaction, held: Token, now: float) -> bool:
    row = tx.token(held.id)
    return row is not None and credentials.matches(held.secret, row.secret) and tokens.state(row, now) is None


def _revoke(tx: Transaction, held: Token, now: float) -> None:
    if tx.token(held.id) is not None:
        tokens.revoke(tx, held.id, now)
