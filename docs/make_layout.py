"""Writes docs/layout.md: every Python file of the five packages with the first line of its docstring.

    python docs/make_layout.py            rewrite the page
    python docs/make_layout.py --check    exit with 1 if the page is stale, and change nothing

The page depends on nothing but the names and docstrings of the files: no dates, no line counts.
A file that has no docstring is an error, because its row would be empty.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "layout.md"
PACKAGES = ("curtail", "controller", "agent", "nanochat", "rustbpe")
COMMAND = "python docs/make_layout.py"

HEAD = f"""# Layout of the code

Every Python file of the five packages, with the first line of its docstring. The order of the layers is in
[architecture.md](architecture.md#layers-of-the-code). This page is generated: run `{COMMAND}` after adding,
moving or deleting a file, or changing the first line of its docstring.
"""


def summary(path: Path) -> str:
    """The first paragraph's first line of a module's docstring; SystemExit if there is none."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if not docstring:
        raise SystemExit(f"{path.relative_to(ROOT)} has no docstring")
    return docstring.splitlines()[0].strip().replace("|", "\\|")


def folders(package: Path) -> Iterator[Path]:
    """The package's folder and those below it that hold Python files, each before its own subfolders."""
    if any(package.glob("*.py")):
        yield package
    for below in sorted(path for path in package.iterdir() if path.is_dir() and path.name != "__pycache__"):
        yield from folders(below)


def part(folder: Path) -> str:
    """The section of one folder: its purpose, and a table of its files."""
    purpose = folder / "__init__.py"
    heading = "#" * (1 + len(folder.relative_to(ROOT).parts))
    lines = [f"{heading} {folder.relative_to(ROOT).as_posix()}/", ""]
    if purpose.exists():
        lines += [summary(purpose), ""]
    files = sorted(path for path in folder.glob("*.py") if path != purpose)
    if files:
        lines += ["| file | purpose |", "|---|---|"]
        lines += [f"| `{path.name}` | {summary(path)} |" for path in files] + [""]
    return "\n".join(lines)


def page() -> str:
    """The whole page, as it should be now."""
    parts = [part(folder) for package in PACKAGES for folder in folders(ROOT / package)]
    return "\n".join([HEAD, *parts]).rstrip() + "\n"


def main(arguments: Sequence[str]) -> int:
    text = page()
    if list(arguments) == ["--check"]:
        if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text:
            return 0
        print(f"docs/layout.md is stale: run `{COMMAND}`", file=sys.stderr)
        return 1
    if arguments:
        print(__doc__, file=sys.stderr)
        return 2
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
