"""Use cases of access control: identify callers, manage tokens and machines, check who owns an upload.

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
    """Access control of the service.

    Args: event: writes an event.
    """

    def __init__(self, config: RunConfig, clock: Clock, sites: Sites, event: Event) -> None:
        self._config, self._clock, self._sites, self._event = config, clock, sites, event

    def caller(self, tx: Transaction, shown: str) -> Caller:
        """The caller that a credential or token belongs to. Raises: AuthError, Forbidden."""
        now = self._clock.wall()
        if shown.startswith("ct"):
            return tokens.caller(tx, shown, now)
        machine = credentials.machine_of(tx, shown, now)
        return Caller(Role.AGENT, machine.site, machine)

    def signed(self, tx: Transaction, who: MachineRow, stamp: Stamp) -> None:
        """Record a verified signed request. It is accepted once, and only with the current fencing token.

        Raises: AuthError, Refused.
        """
        if stamp.fence != who.fence:
            raise Refused(
                f"fencing token {stamp.fence} of site {who.site} is out of date, {who.fence} is current",
                "another agent of this site joined",
            )
        credentials.first_time(tx, who.key, stamp, self._clock.wall())

    def renew(self, tx: Transaction, row: MachineRow, stamp: Stamp) -> wire.JoinReply:
        """A new credential for a machine that proved its key; its fencing token does not change.

        Raises: AuthError: the request is a replay.
        """
        now = self._clock.wall()
        credentials.first_time(tx, row.key, stamp, now)
        run = tx.run()
        assert run is not None, "the run is created before any machine joins"
        credential = credentials.fresh_credential(tx, row, now)
        return wire.JoinReply(credential, row.fence, self._config.fleet.heartbeat, run.id)

    # -- operators -------------------------------------------------------

    def create_token(self, tx: Transaction, request: TokenRequest, pin: str | None, by: Caller) -> TokenReply:
        """Create a token. Raises: UsageError; NotFound: the run has no such region."""
        if request.region and request.region not in self._config.regions:
            known = ", ".join(sorted(self._config.regions))
            raise NotFound(f"the run has no region {request.region!r}", f"use one of {known}")
        made = tokens.create(tx, request, pin, self._clock.wall())
        where = f" for {request.site or request.region}" if request.site or request.region else ""
        self._event(tx, "access", f"{by.name} made token {made.id}, {request.role}{where}")
        return made

    def revoke_token(self, tx: Transaction, token_id: str, by: Caller) -> wire.Ack:
        """Revoke a token. The answer is not `ok` if it was revoked before. Raises: NotFound."""
        revoked = tokens.revoke(tx, token_id, self._clock.wall())
        if revoked:
            self._event(tx, "access", f"{by.name} revoked token {token_id}")
        return wire.Ack(revoked)

    def nodes(self, tx: Transaction) -> NodeList:
        """All machines that joined."""
        return self._sites.nodes(tx)

    def remove_node(self, tx: Transaction, request: NodeRemove, by: Caller) -> NodeRemoved:
        """Remove a machine, or all of a site: delete keys and credentials, return leased samples. Raises: NotFound."""
        count = self._sites.remove(tx, request.site, request.agent)
        machines = "1 machine" if count == 1 else f"{count} machines"
        self._event(tx, "access", f"{by.name} removed {machines} of {request.site}")
        return NodeRemoved(count)

    # -- uploads --------------------------------------------------------

    def offered(self, tx: Transaction, who: MachineRow, sha256: str) -> BlobRow | None:
        """Begin or continue an upload; the file if it is complete already. Raises: Forbidden: another site's."""
        if tx.blob(sha256) is None:
            now = self._clock.wall()
            tx.begin_upload(sha256, who.site, now, now - ABANDONED_S)
        return self.check_upload(tx, who, sha256)

    def check_upload(self, tx: Transaction, who: MachineRow, sha256: str) -> BlobRow | None:
        """The file if it is complete, None if the site may upload it.

        Raises: Forbidden: it is another site's upload. NotFound: it was not offered.
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
        """Record an upload that is complete and verified."""
        tx.put_blob(blob)
        tx.end_upload(blob.sha256)

    def readable(self, tx: Transaction, who: MachineRow, sha256: str) -> BlobRow | None:
        """A file that the site may read: data, versions, its own contributions. None: no such file."""
        known = tx.blob(sha256)
        return known if known is not None and readable_by(known, who.site) else None


def readable_by(blob: BlobRow, site: str) -> bool:
    """Whether the site may read and commit the file. Only the site that sent a contribution may."""
    return blob.kind != "contribution" or blob.site in ("", site)
