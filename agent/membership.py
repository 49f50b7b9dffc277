"""Who this machine is to its controller: it joins with a token, comes back by credential or key, and leaves.

Decides when a token is needed and what is kept of an answer, so that a machine
that lost its power comes back as the one that it was: its key alone gets it a
credential, also where the answer to its join was lost. When to talk is decided by
`agent.loop`.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace

from agent import launcher
from agent.home import Home, Identity
from agent.http.client import Control
from agent.options import Edges, JoinOptions
from curtail import wire
from curtail.errors import AuthError, CurtailError, DiskError, Unreachable
from curtail.security.signing import Signer

GIVE_TOKEN = "give a join token: set CURTAIL_TOKEN or use --token-file"


class Membership:
    """One machine of a site, as its controller knows it."""

    def __init__(self, options: JoinOptions, edges: Edges, home: Home, control: Control) -> None:
        self.options, self.edges, self.home, self.control = options, edges, home, control
        self.identity: Identity = home.identity(edges.disk)
        self._key = home.key(edges.disk)
        control.signer = Signer(self._key, edges.clock.wall, self.identity.fence)
        control.credential = home.credential()
        self.ranks = options.ranks or launcher.count_devices()
        self.address, self.port = "", 0  # for the site's other machines
        if options.machines > 1:
            self.address = options.address or edges.local_address(control.address)
            self.port = options.rendezvous_port
        self._renewed = False  # by the key, and the new credential was good for nothing yet

    @property
    def same_machine(self) -> bool:
        """Did this agent tell the controller at its last join what is true now?"""
        known, options = self.identity, self.options
        told = (known.site, known.machines, known.address, known.port)
        return told == (options.site, options.machines, self.address, self.port)

    def come_back(self, beat: Callable[[], wire.HeartbeatReply]) -> wire.HeartbeatReply:
        """`beat` with the stored credential, or with a new one that the key gets. Raises: as `beat`."""
        refusal = AuthError("its file is gone, and the key alone is not known there")
        if self.control.credential is not None:
            try:
                return beat()
            except AuthError as error:
                refusal = error
        if not self.renew():
            raise refusal
        return beat()

    def enter(self, refusal: CurtailError | None) -> None:
        """Join with the token; without one this is a machine that joined, if the power was lost before it was noted.

        Args: refusal: why the controller does not take what is kept of an earlier join.
        Raises: AuthError: a token is needed. As `Control.join` and `Control.renew`.
        """
        if not self.options.token:
            if not self.identity.site and refusal is None and self.renew():
                return
            raise AuthError(self._without_token(refusal), GIVE_TOKEN)
        self.control.credential = None
        request = wire.JoinRequest(
            wire.PROTOCOL,
            self.identity.agent,
            self.options.site,
            self.options.region,
            socket.gethostname(),
            self.ranks,
            self.options.token,
            self.options.machines,
            self.address,
            self.port,
            self._key.public,
            self.options.replace,
        )
        self._remember(self.control.join(request))

    def _without_token(self, refusal: CurtailError | None) -> str:
        if refusal is not None:
            return f"the controller refuses this agent's credential: {refusal.message}"
        if self.identity.site == self.options.site:
            return f"{self.home.path} joined with another --machines, --address or port, and no token was given"
        return f"site {self.options.site} has not joined from {self.home.path} and no token was given"

    def renew(self) -> bool:
        """Get a new credential by the key alone, for one that has expired; once, until it was good for something.

        Raises: Unreachable, DiskError.
        """
        if self._renewed:
            return False
        self._renewed = True
        try:
            reply = self.control.renew(wire.RenewRequest(self.identity.agent, self.options.site))
        except (Unreachable, DiskError):
            self._renewed = False
            raise
        except CurtailError:
            return False
        self._remember(reply)
        return True

    def _remember(self, reply: wire.JoinReply) -> None:
        """What the controller knows of this machine now."""
        self.identity = Identity(
            self.identity.agent,
            self.options.site,
            reply.run,
            reply.fence,
            reply.heartbeat_s,
            self.options.machines,
            self.address,
            self.port,
            self.identity.crew,
        )
        if self.control.signer is not None:
            self.control.signer.fence = reply.fence
        self.home.remember(self.identity, reply.credential, self.edges.disk)

    def heard(self, reply: wire.HeartbeatReply) -> None:
        """The credential was good; use a new one once it is on disk, for the job and for a restart.

        Until then the old one is good.
        """
        self._renewed = False
        if reply.credential is None:
            return
        try:
            self.home.keep_credential(reply.credential, self.edges.disk)
        except DiskError as error:
            self.edges.say(f"site {self.options.site}: {error}; the old credential is used until it ends")
        else:
            self.control.credential = reply.credential

    def begins_in(self, crew: str) -> None:
        """The job of this crew begins here: after a crash the controller must hear that. Raises: DiskError."""
        self.identity = replace(self.identity, crew=crew)
        self.home.note(self.identity, self.edges.disk)

    def leave(self, reason: str) -> None:
        """Tell the controller that this machine stops for good, if it ever joined."""
        if self.control.credential is None:
            return
        request = wire.LeaveRequest(self.identity.agent, self.options.site, self.identity.fence, reason)
        try:
            self.control.leave(request)
        except CurtailError as error:
            # Without the message the controller notices by the missing heartbeats.
            self.edges.say(f"site {self.options.site}: the controller was not told: {error}")
