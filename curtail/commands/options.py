"""Arguments that several commands share: which values are refused, and where they come from."""

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
"""Characters; a token file that is longer is another file, given by mistake."""


class Unit(StrEnum):
    """Units of an MCI trace."""

    GRAMS = "g/kWh"
    POUNDS = "lb/MWh"


AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        help="File with the token to join or to look with, - for stdin; else CURTAIL_TOKEN in the environment.",
        show_default=False,
    ),
]
ServerName = Annotated[
    str | None,
    typer.Option(
        help="The name in the controller's certificate, where it is not the host of its address.", show_default=False
    ),
]
UnitName = Annotated[str, typer.Option(help="Name of the unit.")]
SystemWide = Annotated[bool, typer.Option("--system", help="For the whole machine; needs root.")]
RunsAs = Annotated[
    str | None, typer.Option("--as", help="With --system: the user that it runs as.", show_default=False)
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the unit and write nothing.")]


def default_state() -> Path:
    """Where this user's state lives: $XDG_STATE_HOME/curtail, or ~/.local/state/curtail."""
    base = os.environ.get("XDG_STATE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".local" / "state") / "curtail"


def check_name(kind: str, name: str) -> str:
    """`name`, if a site or region can have it.

    Raises: UsageError.
    """
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be the name of a {kind}", "use 1 to 64 letters, digits, dots, dashes and underscores"
        )
    return name


def check_host(name: str) -> str:
    """`name`, if it is a host name or an address, as a certificate can hold it.

    Raises: UsageError: a URL, a port, or something else.
    """
    if HOST.fullmatch(name):
        return name
    try:
        ipaddress.ip_address(name)  # IPv6
    except ValueError:
        raise UsageError(
            f"--advertise cannot be {name!r}", "give a host name or an address, without https:// and without a port"
        ) from None
    return name


def read_token(file: Path | None) -> str | None:
    """The token from `file` (-: stdin), else from CURTAIL_TOKEN, else None. Never from a flag: others can read those.

    Raises: NotFound, AuthError, UsageError.
    """
    if file is None:
        return os.environ.get("CURTAIL_TOKEN", "").strip() or None
    try:
        text = (sys.stdin.read(LONGEST_TOKEN + 1) if file == Path("-") else file.read_text(encoding="utf-8")).strip()
    except FileNotFoundError:
        raise NotFound(f"there is no token file {file}", "the controller writes it to HOME/join-token") from None
    except IsADirectoryError:
        raise AuthError(f"cannot read the token file {file}: it is a folder", "name the file in it") from None
    except OSError as error:
        raise AuthError(
            f"cannot read the token file {file}: {error.strerror}", "check its owner and its mode"
        ) from None
    except UnicodeDecodeError:
        raise UsageError(f"{file} is no token file", "the controller writes it to HOME/join-token") from None
    if not text or len(text) > LONGEST_TOKEN or len(text.split()) != 1:
        raise UsageError(f"{file} does not hold a token", "the controller writes it to HOME/join-token")
    return text


def samples_at_once(text: str) -> int:
    """A number of samples, 0 for auto. Raises: UsageError."""
    if text == "auto":
        return 0
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--device-batch-samples cannot be {text!r}", "give a number of samples, or auto")
    return int(text)


def seconds(text: str, remedy: str) -> float:
    """A time such as 90 min, 12 h or 30 d, in seconds. Raises: UsageError, with `remedy`: what the option takes."""
    found = re.fullmatch(r"(\d{1,6}) ?(s|m|min|h|d)", text)
    if found is None or int(found[1]) == 0:
        raise UsageError(f"{text!r} is no time", remedy)
    return int(found[1]) * {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}[found[2]]
