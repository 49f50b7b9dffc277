"""Formats the results of `curtail simulate` as text, table or CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from curtail.planner.planner import Outcome

COLUMNS = (
    "complete", "runtime_h", "energy_kwh", "kg_attributed", "kg_reserved", "kg_full", "curtailed_energy_pct",
    "dirty_train_s", "starts", "oracle_kg",
)  # fmt: skip
"""Columns of the table of a sweep."""


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """CSV with one line per row and the regions' figures in the last columns."""
    out = io.StringIO()
    flat = [{key: value for key, value in row.items() if key != "sites"} for row in rows]
    for line, row in zip(flat, rows, strict=True):
        for region, site in row["sites"].items():
            line |= {f"{region}_train_s": site["train_s"], f"{region}_kg": site["kg"]}
    writer = csv.DictWriter(out, list(flat[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue().rstrip("\n")


def as_table(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """A text table with one line per value of a sweep."""
    heads = [name, *COLUMNS]
    cells = [heads] + [[_cell(row[head]) for head in heads] for row in rows]
    widths = [max(len(line[index]) for line in cells) for index in range(len(heads))]
    return "\n".join("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in cells)


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def as_text(found: Mapping[str, Any], outcome: Outcome, start: float, explain: bool) -> str:
    """One simulation as text; with `explain` every change of a site and its reason."""
    share = found["work_done_site_seconds"] / max(
        1e-9, found["work_done_site_seconds"] + found["work_left_site_seconds"]
    )
    end = "done" if found["complete"] else f"NOT DONE when the trace ended, {100 * share:.1f} % of the work"
    oracle = "-" if found["oracle_kg"] is None else f"{found['oracle_kg']:.3f} kg"
    lines = [
        f"{end} after {found['runtime_h']:.2f} h, {found['starts']} starts",
        f"energy      {found['energy_kwh']:.2f} kWh, {found['curtailed_energy_pct']:.2f} % of it curtailed; "
        f"{found['dirty_train_s']:.0f} s of training were not curtailed",
        f"attributed  {found['kg_attributed']:.3f} kg; lower bound for any schedule {oracle}",
        f"reserved    {found['kg_reserved']:.3f} kg, including {found['standing_kwh']:.2f} kWh of standing energy",
        f"full        {found['kg_full']:.3f} kg",
    ]
    if found["deadline_met"] is not None:
        lines.append(f"the deadline is {'met' if found['deadline_met'] else 'MISSED'}")
    for region, site in found["sites"].items():
        lines.append(f"  {region:14} {site['train_s'] / 3600:6.2f} h of training  {site['kg']:7.3f} kg")
    if explain:
        lines += [f"  {(at - start) / 3600:7.3f} h  {region:14} {reason}" for at, region, reason in outcome.spells]
    return "\n".join(lines)
