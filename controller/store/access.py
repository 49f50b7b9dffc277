"""Tables of who may come in, which signed requests were seen, and whose uploads are under way."""

from __future__ import annotations

from typing import Any

from controller.store.rows import MachineRow, TokenRow
from controller.store.tables import Tables


class AccessTables(Tables):
    """join_tokens, nonces, uploads, and the credentials of machines."""

    def add_token(self, row: TokenRow) -> None:
        self._insert("join_tokens", {name: getattr(row, name) for name in TokenRow.__slots__})

    def token(self, token_id: str) -> TokenRow | None:
        row = self._one("SELECT * FROM join_tokens WHERE id = ?", token_id)
        return None if row is None else TokenRow(**row)

    def tokens(self) -> list[TokenRow]:
        """All tokens that were made, the oldest first."""
        return [TokenRow(**row) for row in self._all("SELECT * FROM join_tokens ORDER BY created_wall, id")]

    def set_token(self, token_id: str, **values: Any) -> None:
        self._update("join_tokens", values, {"id": token_id})

    # -- credentials -----------------------------------------------------------

    def machine_by_credential(self, credential_hash: str) -> MachineRow | None:
        """The machine whose credential this is, or is to be, or was."""
        # Three statements: one with OR would read the whole table.
        for column in ("credential", "next_credential", "former_credential"):
            row = self._one(f"SELECT * FROM machines WHERE {column} = ? AND {column} != ''", credential_hash)
            if row is not None:
                return MachineRow(**row)
        return None

    def see_nonce(self, key: str, nonce: str, until_wall: float, now_wall: float) -> bool:
        """Remember a signed request until then; False: it came before."""
        self._db.execute("DELETE FROM nonces WHERE until_wall < ?", (now_wall,))
        before = self._one("SELECT 1 AS seen FROM nonces WHERE key = ? AND nonce = ?", key, nonce)
        if before is None:
            self._insert("nonces", {"key": key, "nonce": nonce, "until_wall": until_wall})
        return before is None

    def forget_nonces(self, key: str) -> None:
        self._db.execute("DELETE FROM nonces WHERE key = ?", (key,))

    # -- uploads ---------------------------------------------------------------

    def begin_upload(self, sha256: str, site: str, now_wall: float, oldest_wall: float) -> str:
        """The site whose upload this is: the first that offered it. What began before `oldest_wall` is forgotten."""
        self._db.execute("DELETE FROM uploads WHERE begun_wall < ?", (oldest_wall,))
        self._insert("uploads", {"sha256": sha256, "site": site, "begun_wall": now_wall}, ignore=True)
        return self.upload_site(sha256) or site

    def upload_site(self, sha256: str) -> str | None:
        """Whose upload it is; None: nobody offered it."""
        row = self._one("SELECT site FROM uploads WHERE sha256 = ?", sha256)
        return None if row is None else str(row["site"])

    def uploads_of(self, site: str) -> list[str]:
        """Names of what the site uploads, and of its contributions that are not merged yet."""
        rows = self._all(
            "SELECT sha256 FROM uploads WHERE site = ? UNION SELECT sha256 FROM blobs WHERE site = ? AND kind = ?",
            site, site, "contribution",
        )  # fmt: skip
        return [str(row["sha256"]) for row in rows]

    def end_upload(self, sha256: str) -> None:
        self._db.execute("DELETE FROM uploads WHERE sha256 = ?", (sha256,))
