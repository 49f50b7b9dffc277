"""Options and value checks shared by several commands."""

from __future__ import annotations

import ipaddress
import os
import re
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from curtail.errors import AuthError, NotFound, UsageError

NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
HOST = re.compile(r"[A-Za-z0-9._-]{1,253}")
LONGEST_TOKEN = 4096
"""Characters; a longer file is not a token file."""


class Unit(StrEnum):
    """Units of an MCI trace."""

    GRAMS = "g/kWh"
    POUNDS = "lb/MWh"


AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        help="File with the token, - for stdin; default: the environment variable CURTAIL_TOKEN.",
        show_default=False,
    ),
]
ServerName = Annotated[
    str | None,
    typer.Option(
        help="Name in the controller's certificate, if it differs from the host in the URL.", show_default=False
    ),
]
UnitName = Annotated[str, typer.Option(help="Name of the systemd unit.")]
SystemWide = Annotated[bool, typer.Option("--system", help="Install a system unit instead of a user unit; needs root.")]
RunsAs = Annotated[str | None, typer.Option("--as", help="With --system: the user to run as.", show_default=False)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the unit without writing it.")]


def default_state() -> Path:
    """This user's state folder: $XDG_STATE_HOME/curtail, or ~/.local/state/curtail."""
    base = os.environ.get("XDG_STATE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".local" / "state") / "curtail"


def check_name(kind: str, name: str) -> str:
    """Return `name` if it is a valid name of a site or region.

    Raises: UsageError.
    """
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is not a valid name of a {kind}", "use 1 to 64 letters, digits, dots, dashes and underscores"
        )
    return name


def check_host(name: str) -> str:
    """Return `name` if it is a host name or an IP address, as in a certificate.

    Raises: UsageError: a URL, a port, or something else.
    """
    if HOST.fullmatch(name):
        return name
    try:
        ipaddress.ip_address(name)  # IPv6
    except ValueError:
        raise UsageError(
            f"invalid value for --advertise: {name!r}", "give a host name or IP address, without https:// and port"
        ) from None
    return name


def read_token(file: Path | None) -> str | None:
    """The token from `file` (-: stdin), or from CURTAIL_TOKEN, or None.

    Never from an option, because other users can read the command line of a process.
    Raises: NotFound, AuthError, UsageError.
    """
    if file is None:
        return os.environ.get("CURTAIL_TOKEN", "").strip() or None
    try:
        text = (sys.stdin.read(LONGEST_TOKEN + 1) if file == Path("-") else file.read_text(encoding="utf-8")).strip()
    except FileNotFoundError:
        raise NotFound(
            f"the token file {file} does not exist", "copy it from HOME/join-token on the controller's machine"
        ) from None
    except IsADirectoryError:
        raise AuthError(f"cannot read the token file {file}: it is a folder", "give the file in it") from None
    except OSError as error:
        raise AuthError(
            f"cannot read the token file {file}: {error.strerror}", "check its owner and permissions"
        ) from None
    except UnicodeDecodeError:
        raise UsageError(
            f"{file} is not a token file", "give a copy of HOME/join-token from the controller's machine"
        ) from None
    if not text or len(text) > LONGEST_TOKEN or len(text.split()) != 1:
        raise UsageError(
            f"{file} does not hold a token", "give a copy of HOME/join-token from the controller's machine"
        )
    return text


def samples_at_once(text: str) -> int:
    """Parse --device-batch-samples: a number of samples, 0 for auto. Raises: UsageError."""
    if text == "auto":
        return 0
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"invalid value for --device-batch-samples: {text!r}", "give a number of samples, or auto")
    return int(text)


def seconds(text: str, remedy: str) -> float:
    """Parse a duration such as 90 min, 12 h or 30 d as seconds. Raises: UsageError with `remedy`."""
    found = re.fullmatch(r"(\d{1,6}) ?(s|m|min|h|d)", text)
    if found is None or int(found[1]) == 0:
        raise UsageError(f"{text!r} is not a duration", remedy)
    return int(found[1]) * {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}[found[2]]
