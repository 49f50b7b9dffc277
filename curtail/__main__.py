"""The way in: `curtail` and `python -m curtail`.

Decides how the program ends: the exit code and the one line that a person sees
for each kind of failure. Commands are in `curtail.cli`. An exception that is no
`CurtailError` is our own bug and keeps its traceback.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from curtail.errors import CurtailError

PACKAGES = ("agent", "controller", "nanochat", "rustbpe")
INTERRUPTED = 130
"""128 + SIGINT, as shells report it."""


def main() -> None:
    """Run the command line and leave the process with its exit code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Carry out one command; returns the exit code."""
    try:
        check_packages()
        from curtail.cli import invoke

        code = invoke(arguments)
        sys.stdout.flush()
        return code
    except CurtailError as error:
        complain(error)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) has seen enough. Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def complain(error: CurtailError) -> None:
    """One line on stderr, whatever the message holds."""
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
