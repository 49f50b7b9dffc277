"""Entry point of `curtail` and `python -m curtail`: exit codes and one-line error messages.

The commands are in `curtail.commands`. An exception that is not a `CurtailError`
is a bug in curtail and keeps its traceback.
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
except KeyboardInterrupt:  # Ctrl-C during the imports, before `run` can catch it
    sys.exit(INTERRUPTED)

PACKAGES = ("agent", "controller", "nanochat", "rustbpe")

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


def main() -> None:
    """Run the command line and exit the process with its exit code."""
    try:
        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # Ctrl-C while `run` was printing an error
        code = INTERRUPTED
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    try:
        check_packages()
        from curtail.commands import invoke

        if sys.stdout is None:  # the caller started us with stdout closed
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (stays open until the process exits)
        code = invoke(arguments)
        sys.stdout.flush()
        return code
    except CurtailError as error:
        complain(error)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) closed the pipe.
        drop_output()
        return 1
    except OSError as error:
        # Errors of named files are reported where they happen; an error without a file name is from stdout.
        if error.filename is not None or error.errno not in NO_ROOM:
            raise
        drop_output()
        complain(
            CurtailError(f"cannot write the output: {error.strerror}", "free some space, or redirect it elsewhere")
        )
        return CurtailError.exit_code


def drop_output() -> None:
    """Discard buffered output, so that Python does not report a second error when it flushes stdout at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def complain(error: CurtailError) -> None:
    """Print the error as one line on stderr, even if its text holds line breaks or unencodable characters."""
    if sys.stderr is None:  # the caller started us with stderr closed; only the exit code remains
        return
    text = " ".join(str(error).split())
    encoding = sys.stderr.encoding or "ascii"
    print(f"curtail: {text}".encode(encoding, "replace").decode(encoding), file=sys.stderr)


def check_packages() -> None:
    """Refuse to run if another package shadows one of ours.

    `agent` and `controller` are common names: a folder of that name in the working
    directory, or another distribution, could be imported instead of ours.
    Raises: CurtailError: names the package and where it was found.
    """
    home = Path(__file__).resolve().parent.parent
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None:
            raise CurtailError(f"the package {name!r} is missing next to {home / 'curtail'}", "reinstall curtail")
        places = [Path(place).resolve().parent for place in spec.submodule_search_locations or []]
        if places != [home]:
            found = places[0] / name if places else spec.origin
            raise CurtailError(
                f"another package named {name!r} in {found} shadows the one in {home}",
                "run curtail from another folder, or install it into its own virtual environment",
            )


if __name__ == "__main__":
    main()
