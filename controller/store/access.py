"""Tables for access control: join tokens, machine credentials, nonces, and unfinished uploads."""

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

    def drop_token(self, token_id: str) -> None:
        self._db.execute("DELETE FROM join_tokens WHERE id = ?", (token_id,))

    def tokens(self) -> list[TokenRow]:
        """All tokens that were issued, oldest first."""
        return [TokenRow(**row) for row in self._all("SELECT * FROM join_tokens ORDER BY created_wall, id")]

    def set_token(self, token_id: str, **values: Any) -> None:
        self._update("join_tokens", values, {"id": token_id})

    # -- credentials -----------------------------------------------------------

    def machine_by_credential(self, credential_hash: str) -> MachineRow | None:
        """The machine whose current, next or former credential this is."""
        # Three statements, because one with OR would scan the whole table.
        for column in ("credential", "next_credential", "former_credential"):
            row = self._one(f"SELECT * FROM machines WHERE {column} = ? AND {column} != ''", credential_hash)
            if row is not None:
                return MachineRow(**row)
        return None

    def see_nonce(self, key: str, nonce: str, until_wall: float, now_wall: float) -> bool:
        """Remember the nonce of a signed request until `until_wall`. Returns: False if it was seen before."""
        self._db.execute("DELETE FROM nonces WHERE until_wall < ?", (now_wall,))
        before = self._one("SELECT 1 AS seen FROM nonces WHERE key = ? AND nonce = ?", key, nonce)
        if before is None:
            self._insert("nonces", {"key": key, "nonce": nonce, "until_wall": until_wall})
        return before is None

    def forget_nonces(self, key: str) -> None:
        self._db.execute("DELETE FROM nonces WHERE key = ?", (key,))

    # -- uploads ---------------------------------------------------------------

    def begin_upload(self, sha256: str, site: str, now_wall: float, oldest_wall: float) -> str:
        """The site that owns this upload: the first that offered it. Uploads begun before `oldest_wall` are dropped."""
        self._db.execute("DELETE FROM uploads WHERE begun_wall < ?", (oldest_wall,))
        self._insert("uploads", {"sha256": sha256, "site": site, "begun_wall": now_wall}, ignore=True)
        return self.upload_site(sha256) or site

    def upload_site(self, sha256: str) -> str | None:
        """The site that owns this upload; None if no site offered it."""
        row = self._one("SELECT site FROM uploads WHERE sha256 = ?", sha256)
        return None if row is None else str(row["site"])

    def uploads_of(self, site: str) -> list[str]:
        """Hashes of the site's unfinished uploads and of its contributions that are not merged yet."""
        rows = self._all(
            "SELECT sha256 FROM uploads WHERE site = ? UNION SELECT sha256 FROM blobs WHERE site = ? AND kind = ?",
            site, site, "contribution",
        )  # fmt: skip
        return [str(row["sha256"]) for row in rows]

    def end_upload(self, sha256: str) -> None:
        self._db.execute("DELETE FROM uploads WHERE sha256 = ?", (sha256,))
