"""Use cases of access: who asks, what an operator does about it, and whose upload a file is.

Methods run inside one transaction on the store's thread.
"""

from __future__ import annotations

from controller.auth import credentials, tokens
from controller.auth.credentials import Caller, Forbidden, Role
from controller.files.uploads import ABANDONED_S
from controller.service.sites import Sites
from controller.store import Transaction
from controller.store.events import Event
from controller.store.rows import BlobRow, MachineRow
from curtail import wire
from curtail.config import RunConfig
from curtail.errors import NotFound, Refused
from curtail.security.signing import Stamp
from curtail.system.clock import Clock
from curtail.wire import NodeList, NodeRemove, NodeRemoved, TokenReply, TokenRequest


class Access:
    """Who may do what.

    Args: event: writes a line of the log.
    """

    def __init__(self, config: RunConfig, clock: Clock, sites: Sites, event: Event) -> None:
        self._config, self._clock, self._sites, self._event = config, clock, sites, event

    def caller(self, tx: Transaction, shown: str) -> Caller:
        """Who shows this credential or token. Raises: AuthError, Forbidden."""
        now = self._clock.wall()
        if shown.startswith("ct"):
            return tokens.caller(tx, shown, now)
        machine = credentials.machine_of(tx, shown, now)
        return Caller(Role.AGENT, machine.site, machine)

    def signed(self, tx: Transaction, who: MachineRow, stamp: Stamp) -> None:
        """Record a verified signed request: it counts once, and only with the current fencing token.

        Raises: AuthError, Refused.
        """
        if stamp.fence != who.fence:
            raise Refused(
                f"fencing token {stamp.fence} of site {who.site} is out of date, {who.fence} is current",
                "another agent of this site joined",
            )
        credentials.first_time(tx, who.key, stamp, self._clock.wall())

    def renew(self, tx: Transaction, row: MachineRow, stamp: Stamp) -> wire.JoinReply:
        """A new credential for a machine that proved its key; its fencing token stays.

        Raises: AuthError: the request came before.
        """
        now = self._clock.wall()
        credentials.first_time(tx, row.key, stamp, now)
        run = tx.run()
        assert run is not None, "the run is created before anybody joins"
        credential = credentials.fresh_credential(tx, row, now)
        return wire.JoinReply(credential, row.fence, self._config.fleet.heartbeat, run.id)

    # -- what operators do -------------------------------------------------------

    def create_token(self, tx: Transaction, request: TokenRequest, pin: str | None, by: Caller) -> TokenReply:
        """A new token. Raises: UsageError, NotFound: the run has no such region."""
        if request.region and request.region not in self._config.regions:
            known = ", ".join(sorted(self._config.regions))
            raise NotFound(f"the run has no region {request.region!r}", f"use one of {known}")
        made = tokens.create(tx, request, pin, self._clock.wall())
        where = f" for {request.site or request.region}" if request.site or request.region else ""
        self._event(tx, "access", f"{by.name} made token {made.id}, {request.role}{where}")
        return made

    def revoke_token(self, tx: Transaction, token_id: str, by: Caller) -> wire.Ack:
        """Nobody gets in with that token any more; not ok: it was revoked before. Raises: NotFound."""
        revoked = tokens.revoke(tx, token_id, self._clock.wall())
        if revoked:
            self._event(tx, "access", f"{by.name} revoked token {token_id}")
        return wire.Ack(revoked)

    def nodes(self, tx: Transaction) -> NodeList:
        """All machines that joined."""
        return self._sites.nodes(tx)

    def remove_node(self, tx: Transaction, request: NodeRemove, by: Caller) -> NodeRemoved:
        """Forget a machine, or all of a site: key and credential, and what it holds goes back. Raises: NotFound."""
        count = self._sites.remove(tx, request.site, request.agent)
        machines = "1 machine" if count == 1 else f"{count} machines"
        self._event(tx, "access", f"{by.name} removed {machines} of {request.site}")
        return NodeRemoved(count)

    # -- whose file it is --------------------------------------------------------

    def offered(self, tx: Transaction, who: MachineRow, sha256: str) -> BlobRow | None:
        """A site wants to upload a file; what is here already under that name. Raises: Forbidden: another site's."""
        if tx.blob(sha256) is None:
            now = self._clock.wall()
            tx.begin_upload(sha256, who.site, now, now - ABANDONED_S)
        return self.check_upload(tx, who, sha256)

    def check_upload(self, tx: Transaction, who: MachineRow, sha256: str) -> BlobRow | None:
        """What is here under that name, if the site may upload it.

        Raises: Forbidden: it is another site's upload. NotFound: nobody offered it.
        """
        known = tx.blob(sha256)
        if known is not None:
            if not readable_by(known, who.site):
                raise Forbidden("this is the upload of another site")
            return known
        site = tx.upload_site(sha256)
        if site is None:
            raise NotFound("this upload was never begun", "offer the blob first")
        if site != who.site:
            raise Forbidden("this is the upload of another site")
        return None

    def uploaded(self, tx: Transaction, blob: BlobRow) -> None:
        """All of an upload is here and was checked."""
        tx.put_blob(blob)
        tx.end_upload(blob.sha256)

    def readable(self, tx: Transaction, who: MachineRow, sha256: str) -> BlobRow | None:
        """A file that the site may read: data, versions, its own contributions. None: there is none for it."""
        known = tx.blob(sha256)
        return known if known is not None and readable_by(known, who.site) else None


def readable_by(blob: BlobRow, site: str) -> bool:
    """May this site read the file, and commit it? Contributions are for the site that sent them."""
    return blob.kind != "contribution" or blob.site in ("", site)
