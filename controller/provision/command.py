"""Machines through any program: `PROGRAM ensure|release|observe`, JSON in and out. See docs/guides/elastic.md.

`ensure` and `release` get one object on standard input. `ensure` answers with one object, `observe` with
{"machines": [...]}; an object has `machine` (its number) and `state` (pending, running or gone) and may have `key`,
`reason`, `id` and `expected_s`. A program that fails exits with another code than 0 and says why on standard error.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from controller.provision.driver import ProvisionError, Request, Runs, output_of, run_program
from controller.provision.lifecycle import Observed

STATES = ("pending", "running", "gone")


@dataclass(frozen=True, slots=True)
class CommandDriver:
    """The machines of one site through a program of the operator."""

    argv: tuple[str, ...]
    run_name: str
    site: str
    run: Runs = run_program

    def ensure(self, request: Request) -> Observed:
        seen = self._read(self._ask("ensure", dataclasses.asdict(request)))
        if seen.machine != request.machine:
            raise ProvisionError(f"{self.argv[0]} answered for machine {seen.machine} instead of {request.machine}")
        return seen

    def release(self, observed: Observed, grace_s: float, now: bool) -> None:
        values = {
            "machine": observed.machine, "key": observed.key, "id": observed.native, "grace_s": grace_s, "now": now,
        }  # fmt: skip
        self._ask("release", {"run": self.run_name, "site": self.site, **values}, empty=True)

    def observe(self) -> list[Observed]:
        listed = self._ask("observe", {"run": self.run_name, "site": self.site}).get("machines")
        if not isinstance(listed, list):
            raise ProvisionError(f"{self.argv[0]} observe printed no list `machines`")
        return [seen for seen in map(self._read, listed) if seen.state != "gone"]

    def _ask(self, verb: str, values: Mapping[str, Any], empty: bool = False) -> dict[str, Any]:
        text = output_of(self.run, [*self.argv, verb], json.dumps(values))
        if empty and not text.strip():
            return {}
        try:
            value = json.loads(text)
        except ValueError:
            raise ProvisionError(f"{self.argv[0]} {verb} printed no JSON: {text[:100]!r}") from None
        if not isinstance(value, dict):
            raise ProvisionError(f"{self.argv[0]} {verb} printed no object")
        return value

    def _read(self, value: Any) -> Observed:
        number = value.get("machine") if isinstance(value, dict) else None
        if not isinstance(number, int) or isinstance(number, bool) or number < 0 or value.get("state") not in STATES:
            raise ProvisionError(
                f"{self.argv[0]} described a machine as {json.dumps(value)[:100]}",
                f"give machine, a number from 0, and state, one of {', '.join(STATES)}",
            )
        expected = value.get("expected_s")
        known = isinstance(expected, (int, float)) and not isinstance(expected, bool)
        return Observed(
            number,
            value["state"],
            str(value.get("reason", ""))[:300],
            str(value.get("id", ""))[:300],
            float(expected) if known else None,
            str(value.get("key", ""))[:300],
        )
