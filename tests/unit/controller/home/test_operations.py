"""docs/guides/operations.md knows every kind of event, and the figures in it are those of the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from controller.home import housekeeping, restore
from controller.store import sqlite_file as files
from curtail.commands.systemd import units
from curtail.security.signing import SKEW_S

ROOT = Path(__file__).resolve().parents[4]
TEXT = (ROOT / "docs" / "guides" / "operations.md").read_text(encoding="utf-8")


def kinds_in_code() -> set[str]:
    """The kinds of all events that the controller notes, from its syntax."""
    found = {restore.EVENT}
    for path in (ROOT / "controller").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            texts = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
            if name in ("_event", "event", "_tell", "tell") and texts and re.fullmatch(r"[a-z]+", texts[0]):
                found.add(texts[0])
    return found


def section(heading: str) -> str:
    return TEXT.split(f"## {heading}\n")[1].split("\n## ")[0]


def test_every_kind_of_event_is_explained_and_no_other() -> None:
    rows = re.findall(r"^\| `([a-z]+)` \|", section("Events"), flags=re.MULTILINE)
    assert set(rows) == kinds_in_code()
    assert {"controller", "disk", "store", "restore", "regime"} <= set(rows)


def test_the_figures_are_those_of_the_code() -> None:
    assert f"beyond {files.EVENTS_KEPT:,}" in section("Events")
    assert f"for a controller {units.CONTROLLER.watchdog_s} s, for an agent {units.AGENT.watchdog_s} s" in TEXT
    assert f"after {units.AGENT.stop_s // 60} minutes" in TEXT
    assert "2, 3, 4 and 7" in TEXT and units.FINAL_CODES == "2 3 4 7"
    assert f"more than {SKEW_S:.0f} s" in section("Clocks")
    first, last = (".".join(map(str, version)) for version in files.RESET_BUG)
    assert f"from {first} to {last}" in TEXT
    assert housekeeping.CHECKED.startswith("the previous controller did not shut down cleanly")
