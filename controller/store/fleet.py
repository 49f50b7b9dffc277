"""Tables of sites and their machines."""

from __future__ import annotations

from typing import Any

from controller.store.rows import MachineRow, SiteRow
from controller.store.tables import Tables


class FleetTables(Tables):
    """Tables sites and machines."""

    def site(self, name: str) -> SiteRow | None:
        row = self._one("SELECT * FROM sites WHERE site = ?", name)
        return None if row is None else SiteRow(**row)

    def sites(self) -> list[SiteRow]:
        return [SiteRow(**row) for row in self._all("SELECT * FROM sites ORDER BY site")]

    def put_site(self, site: SiteRow) -> None:
        self._insert("sites", {name: getattr(site, name) for name in SiteRow.__slots__}, replace=True)

    def set_site(self, name: str, **values: Any) -> None:
        self._update("sites", values, {"site": name})

    def machines(self, site: str) -> list[MachineRow]:
        """The machines of a site, in the order in which they joined."""
        rows = self._all("SELECT * FROM machines WHERE site = ? ORDER BY place", site)
        return [MachineRow(**row) for row in rows]

    def put_machine(self, row: MachineRow) -> None:
        self._insert("machines", {name: getattr(row, name) for name in MachineRow.__slots__}, replace=True)

    def set_machine(self, site: str, agent: str, **values: Any) -> None:
        self._update("machines", values, {"site": site, "agent": agent})

    def machine(self, site: str, agent: str) -> MachineRow | None:
        row = self._one("SELECT * FROM machines WHERE site = ? AND agent = ?", site, agent)
        return None if row is None else MachineRow(**row)

    def drop_machine(self, site: str, agent: str) -> None:
        self._db.execute("DELETE FROM machines WHERE site = ? AND agent = ?", (site, agent))
