"""Reads the credentials of signal sources from the environment or a file, never from the run file.

The file has lines NAME=VALUE, with the names of the environment variables. Only
its owner may be able to read it. The repr of a `Credential` hides its values, so
that they are not logged by accident.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from curtail.errors import AuthError, NotFound

LARGEST = 65536
"""Largest credentials file, in bytes; a larger one was probably named by mistake."""


@dataclass(frozen=True, slots=True)
class Credential:
    """The requested values, in the order of their names."""

    values: tuple[str, ...] = field(repr=False)


def find(names: tuple[str, ...], environ: Mapping[str, str], file: Path | None) -> Credential:
    """The values of `names`: all from the environment if the first is set there, else all from `file`.

    Raises: AuthError: one is missing, or others may read the file. NotFound: no such file.
    """
    listed = " and ".join(names)
    remedy = f"set {listed} in the environment, or name a file that sets them with `credentials` in [signal]"
    given: Mapping[str, str] = environ
    where = "the environment"
    if not environ.get(names[0]) and file is not None:
        given, where = _read(file), str(file)
    for name in names:
        if not given.get(name, "").strip():
            raise AuthError(f"{name} is not set in {where}", remedy)
    return Credential(tuple(given[name].strip() for name in names))


def _read(file: Path) -> dict[str, str]:
    try:
        mode = file.stat().st_mode
        text = file.read_bytes()[: LARGEST + 1].decode("utf-8")
    except FileNotFoundError:
        raise NotFound(f"there is no file {file}", "correct `credentials` in [signal]") from None
    except OSError as error:
        raise AuthError(f"cannot read {file}: {error.strerror}", "check its owner and its mode") from None
    except UnicodeDecodeError:
        raise AuthError(f"{file} is not a text file", "write lines NAME=VALUE") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise AuthError(f"other users can read {file}", f"run chmod 600 {file}")
    if len(text) > LARGEST:
        raise AuthError(f"{file} is too long to hold credentials", "write lines NAME=VALUE")
    pairs = (line.partition("=") for line in text.splitlines() if not line.lstrip().startswith("#"))
    return {name.strip().removeprefix("export ").strip(): value.strip() for name, sign, value in pairs if sign}
