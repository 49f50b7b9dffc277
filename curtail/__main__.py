"""The way in: `curtail` and `python -m curtail`.

Decides how the program ends: the exit code and the one line that a person sees
for each kind of failure. Commands are in `curtail.commands`. An exception that is no
`CurtailError` is our own bug and keeps its traceback.
"""

from __future__ import annotations

import sys

INTERRUPTED = 130
"""128 + SIGINT, as shells report it."""

try:
    import errno
    import importlib.util
    import os
    from pathlib import Path

    from curtail.errors import CurtailError
except KeyboardInterrupt:  # a start takes a moment in which it is not `run` yet that could be interrupted
    sys.exit(INTERRUPTED)

PACKAGES = ("agent", "controller", "nanochat", "rustbpe")

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


def main() -> None:
    """Run the command line and leave the process with its exit code."""
    try:
        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # while it was about to say how it ended
        code = INTERRUPTED
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Carry out one command; returns the exit code."""
    try:
        check_packages()
        from curtail.commands import invoke

        if sys.stdout is None:  # closed by who started us
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (for as long as the process lives)
        code = invoke(arguments)
        sys.stdout.flush()
        return code
    except CurtailError as error:
        complain(error)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) has seen enough.
        drop_output()
        return 1
    except OSError as error:
        # Errors of files are told with the file's name where they happen; what has none is the output itself.
        if error.filename is not None or error.errno not in NO_ROOM:
            raise
        drop_output()
        complain(CurtailError(f"cannot write the output: {error.strerror}", "free some space, or send it elsewhere"))
        return CurtailError.exit_code


def drop_output() -> None:
    """What is still to be printed goes nowhere: else Python complains once more when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def complain(error: CurtailError) -> None:
    """One line on stderr, whatever the message holds."""
    if sys.stderr is None:  # closed by who started us; the exit code says it
        return
    text = " ".join(str(error).split())
    encoding = sys.stderr.encoding or "ascii"
    print(f"curtail: {text}".encode(encoding, "replace").decode(encoding), file=sys.stderr)


def check_packages() -> None:
    """Refuse to run with a stranger's package under one of our names.

    `agent` and `controller` are common names: a folder of that name in the
    working folder, or another distribution, would be imported instead of ours.
    Raises: CurtailError: names the package and where it was found.
    """
    home = Path(__file__).resolve().parent.parent
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None:
            raise CurtailError(f"the package {name!r} is missing beside {home / 'curtail'}", "install curtail again")
        places = [Path(place).resolve().parent for place in spec.submodule_search_locations or []]
        if places != [home]:
            found = places[0] / name if places else spec.origin
            raise CurtailError(
                f"the package {name!r} would come from {found}, not from {home}",
                "start curtail from another folder, and install it into an environment of its own",
            )


if __name__ == "__main__":
    main()
