"""`curtail ledger verify`, `export` and `settle`, on a controller's store or an exported file.

Verify and export read one snapshot of the store, even while its controller runs, and
never write to it. Settle only adds rows, and needs the controller to be stopped.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from controller.home.home import lock
from controller.ledger.settlement import MARGINAL, Historian, Settlement, settle, settled_entries
from controller.signals.select import Surroundings, columns
from controller.store import Store, Transaction, reading
from curtail.carbon import ledger_file
from curtail.carbon.accounting import Totals, add
from curtail.carbon.hash_chain import Finding, follow
from curtail.config import RunConfig, config_from_json
from curtail.errors import CurtailError, NotFound, Refused, UsageError
from curtail.grid.trace import Trace, load_trace
from curtail.system.clock import Clock, SystemClock
from curtail.system.disk import Disk, SystemDisk
from curtail.system.home_files import STORE

LARGEST_EXPORT = 4 << 30
"""Largest exported file, in bytes, that is read for verification."""


def verify(path: Path, head: str | None) -> int:
    """Verify a ledger's hash chain and print the result; returns the exit code.

    Args:
        path: a controller's folder, or an exported file.
        head: a hash noted earlier, which the chain must contain.
    Raises: CurtailError: names the first record that does not match. NotFound.
    """
    if head is not None and (len(head) != 64 or set(head) - set("0123456789abcdef")):
        raise UsageError(f"{head[:80]!r} is not a ledger head", "a head has 64 hexadecimal digits")
    finding = look(path, head)
    if finding.problem:
        raise CurtailError(f"the ledger in {path} was changed: {finding.problem}", "compare it with a backup")
    if finding.passed == "no":
        raise CurtailError(
            f"the ledger in {path} does not contain the head {head}",
            "since then records were removed at its end, or the whole ledger was rewritten",
        )
    print(f"holds   {finding.records} records")
    print(f"head    {finding.head}")
    if head is not None:
        print(f"passes  {head}")
    return 0


def look(path: Path, head: str | None) -> Finding:
    """Verify the chain of a store or of a file. Raises: NotFound, DataError, CurtailError."""
    if path.is_dir():
        with reading(path / STORE) as tx:
            return of_store(tx, head)
    try:
        if path.stat().st_size > LARGEST_EXPORT:
            raise UsageError(
                f"{path} is too large to be an exported ledger", "give a file made by curtail ledger export"
            )
        data = path.read_bytes()
    except FileNotFoundError:
        raise NotFound(f"{path} does not exist", "give a controller's folder, or an exported file") from None
    except OSError as error:
        raise CurtailError(f"cannot read {path}: {error.strerror}", "check its owner and permissions") from None
    return ledger_file.check(data, path.name, head)


def of_store(tx: Transaction, head: str | None = None) -> Finding:
    """Verify the chain of a store, and look for records that are not in it. Raises: NotFound: there is no run."""
    finding = follow(_run(tx), tx.links(), head)
    beside = "" if finding.problem else tx.unchained()
    return (
        Finding(finding.records, finding.head, f"{beside} is not in the chain", finding.passed) if beside else finding
    )


def _run(tx: Transaction) -> str:
    run = tx.run()
    if run is None:
        raise NotFound("the store holds no run yet", "start its controller first")
    return run.id


def export(home: Path, out: Path, form: str, disk: Disk | None = None) -> int:
    """Write the ledger to a file, if its chain is valid; returns the exit code.

    Raises: NotFound, UsageError, CurtailError: the ledger was changed, or the file cannot be written.
    """
    if form not in ledger_file.FORMS:
        raise UsageError(f"unknown format {form!r}", f"use one of {', '.join(ledger_file.FORMS)}")
    if out.name == STORE:
        raise UsageError(f"an export must not be named {STORE}", "that is the name of a controller's store")
    with reading(home / STORE) as tx:
        finding = of_store(tx)
        if finding.problem:
            raise CurtailError(f"the ledger in {home} was changed: {finding.problem}", "run curtail ledger verify")
        data = "".join(ledger_file.write(_run(tx), tx.links(), finding.head, form)).encode()
    (disk or SystemDisk()).replace("LEDGER_EXPORT", out, data)
    print(f"{finding.records} records are in {out}, head {finding.head}", file=sys.stderr)
    return 0


@dataclass(frozen=True, slots=True)
class SettleOptions:
    """Options of `curtail ledger settle`."""

    home: Path
    trace: Path | None = None  # None: the trace of the run file
    unit: str | None = None
    as_json: bool = False


def run_settle(options: SettleOptions, clock: Clock | None = None) -> int:
    """Settle all rows with the present values of their sources; returns the exit code.

    Raises: NotFound: no run. UsageError: no source to settle with. Refused: the controller runs. CurtailError: no
        source answered.
    """
    from controller.ledger.historians import open_historians

    clock = clock or SystemClock()
    with reading(options.home / STORE) as tx:  # rejects a store with another schema, which must not be changed
        _run(tx)
        config = config_from_json(_config(tx))
    historians = open_historians(config, Surroundings(clock, os.environ), _trace(options, config))
    if not historians:
        raise UsageError(
            "there is no source to settle with",
            "pass --trace and --unit, or configure a signal source that serves past values",
        )
    with contextlib.closing(_alone(options.home)):
        return _settle(options, historians, clock)


def _alone(home: Path) -> IO[str]:
    """Lock the folder for this process: only one process may write a store (docs/decisions/017).

    Raises: Refused: its controller runs.
    """
    try:
        return lock(home)
    except Refused:
        raise Refused(
            f"the controller of {home} is running, and only one process may write its store",
            "with a live signal it settles every hour by itself; otherwise stop it, or settle a restored backup",
        ) from None


def _settle(options: SettleOptions, historians: Sequence[Historian], clock: Clock) -> int:
    store = Store(options.home / STORE)
    store.open()
    try:
        reports = [settle(store.call, historian, clock.wall()) for historian in historians]
        decided, settled, without = store.call(_totals)
    finally:
        store.close()
    if options.as_json:
        print(json.dumps(_figures(reports, decided, settled, without)))
    else:
        print("\n".join(_lines(reports, decided, settled, without)))
    problems = [problem for report in reports for problem in report.problems]
    if problems:
        raise CurtailError(
            f"not all rows could be settled: {'; '.join(problems)}", "try again; the rows already settled are kept"
        )
    return 0


def _config(tx: Transaction) -> str:
    run = tx.run()
    assert run is not None, "checked before"
    return run.config


def _trace(options: SettleOptions, config: RunConfig) -> Trace | None:
    if options.trace is not None:
        if options.unit is None:
            raise UsageError("--trace needs --unit", "add --unit g/kWh or --unit lb/MWh")
        return load_trace(options.trace, options.unit, columns(config).values())
    if options.unit is not None:
        raise UsageError("--unit needs --trace", "give both or neither")
    if config.signal.source != "trace":
        return None
    if not config.signal.path:
        raise UsageError("the run file names no trace", "give --trace and --unit")
    return load_trace(Path(config.signal.path), config.signal.unit, columns(config).values())


def _totals(tx: Transaction) -> tuple[Totals, Totals, float]:
    """Totals with the MCI at the decision, totals with the settled MCI, and the kWh that are not settled."""
    rows, known = tx.numbered_entries(), tx.settled(MARGINAL)
    without = sum(entry.kwh for number, entry in rows if number not in known)
    return add(Totals(), (entry for _, entry in rows)), add(Totals(), settled_entries(rows, known)), without


def _figures(reports: list[Settlement], decided: Totals, settled: Totals, without: float) -> dict[str, object]:
    def sums(totals: Totals) -> dict[str, float]:
        return {
            "kg_attributed": totals.kg_attributed, "kg_standing": totals.kg_standing,
            "curtailed_pct": totals.curtailed_pct, "unknown_kwh": totals.unknown_kwh,
        }  # fmt: skip

    return {
        "sources": [
            {
                "basis": r.basis, "rows": r.rows, "first": r.first, "revised": r.revised, "waiting": r.waiting,
                "problems": r.problems,
            }
            for r in reports
        ],
        "at_decision": sums(decided), "settled": sums(settled), "unsettled_kwh": without,
    }  # fmt: skip


def _lines(reports: list[Settlement], decided: Totals, settled: Totals, without: float) -> Iterator[str]:
    for report in reports:
        yield (
            f"{report.basis}: {report.rows} rows, {report.first} settled for the first time, {report.revised} revised,"
            f" {report.waiting} pending"
        )
    yield f"{'':<24}{'at decision':>14}{'settled':>14}"
    for name, field in (("attributed kgCO2", "kg_attributed"), ("standing kgCO2", "kg_standing"),
                        ("curtailed energy %", "curtailed_pct"), ("MCI unknown, kWh", "unknown_kwh")):  # fmt: skip
        yield f"{name:<24}{getattr(decided, field):>14.4f}{getattr(settled, field):>14.4f}"
    yield f"{'not settled, kWh':<24}{'':>14}{without:>14.4f}"
