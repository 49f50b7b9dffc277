"""Joins the run with a token, resumes with the stored credential or key, and leaves the run.

Decides when a token is needed and what is stored of a reply. A machine that lost
power resumes its identity: its key alone gets it a new credential, even if the
reply to its join was lost. `agent.loop` decides when to send what.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace

from agent import launcher
from agent.home import AgentIdentity, Home
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
        self.identity: AgentIdentity = home.identity(edges.disk)
        self._key = home.key(edges.disk)
        control.signer = Signer(self._key, edges.clock.wall, self.identity.fence)
        control.credential = home.credential()
        self.ranks = options.ranks or launcher.count_devices()
        self.address, self.port = "", 0  # for the site's other machines
        if options.machines > 1:
            self.address = options.address or edges.local_address(control.address)
            self.port = options.rendezvous_port
        self._renewed = False  # renewed by the key, and the new credential has not been accepted yet

    @property
    def same_machine(self) -> bool:
        """Do the site, machines and address that were sent with the last join still hold?"""
        known, options = self.identity, self.options
        told = (known.site, known.machines, known.address, known.port)
        return told == (options.site, options.machines, self.address, self.port)

    def come_back(self, beat: Callable[[], wire.HeartbeatReply]) -> wire.HeartbeatReply:
        """Call `beat` with the stored credential, else with a new one obtained by the key. Raises: as `beat`."""
        refusal = AuthError("its file is missing, and the controller does not know this agent's key")
        if self.control.credential is not None:
            try:
                return beat()
            except AuthError as error:
                refusal = error
        if not self.renew():
            raise refusal
        return beat()

    def enter(self, refusal: CurtailError | None) -> None:
        """Join with the token. Without a token, try the key: the join may have succeeded just before a power loss.

        Args: refusal: why the controller refuses the stored credential of an earlier join.
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
        return f"site {self.options.site} has never joined from {self.home.path}, and no token was given"

    def renew(self) -> bool:
        """Get a new credential by the key alone. Tried once, until the controller accepts the new credential.

        Returns: False: it was tried already, or the controller refused.
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
        """Store the reply to a join or a renewal."""
        self.identity = AgentIdentity(
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
        """The credential was accepted. Use a new one from the reply once it is on disk, for the job and a restart.

        Until then the old one stays valid.
        """
        self._renewed = False
        if reply.credential is None:
            return
        try:
            self.home.keep_credential(reply.credential, self.edges.disk)
        except DiskError as error:
            self.edges.say(f"site {self.options.site}: {error}; using the old credential until it expires")
        else:
            self.control.credential = reply.credential

    def begins_in(self, crew: str) -> None:
        """Store that a job of this crew starts, so that the controller hears of it after a crash. Raises: DiskError."""
        self.identity = replace(self.identity, crew=crew)
        self.home.note(self.identity, self.edges.disk)

    def leave(self, reason: str) -> None:
        """Tell the controller that this machine leaves the run, if it ever joined."""
        if self.control.credential is None:
            return
        request = wire.LeaveRequest(self.identity.agent, self.options.site, self.identity.fence, reason)
        try:
            self.control.leave(request)
        except CurtailError as error:
            # The controller will notice the missing heartbeats.
            self.edges.say(f"site {self.options.site}: could not tell the controller that it leaves: {error}")
