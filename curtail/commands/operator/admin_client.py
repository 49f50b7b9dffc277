"""`curtail token` and `curtail node`: manage tokens and machines, on the controller's machine.

Requests to a running controller go through its API, with the operator's token from its
folder. If the controller is stopped, its store is changed directly while the folder is
locked. A token is printed once, to stdout or to a file that only its owner can read.
Times are Unix seconds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from curtail import wire
from curtail.errors import CurtailError, NotFound, Refused, Unreachable, WireError
from curtail.system.disk import SystemDisk
from curtail.system.home_files import STORE, TLS
from curtail.wire import (
    NodeList,
    NodeRemove,
    NodeRemoved,
    TokenInfo,
    TokenList,
    TokenReply,
    TokenRequest,
    TokenRevoke,
)

if TYPE_CHECKING:
    import httpx

    from controller.store import Store

Reply = TypeVar("Reply")


class AdminClient(Protocol):
    """Operations for tokens and machines, on a running or a stopped controller."""

    def create(self, request: TokenRequest) -> TokenReply: ...
    def tokens(self) -> TokenList: ...
    def revoke(self, token_id: str) -> bool: ...
    def nodes(self) -> NodeList: ...
    def remove(self, request: NodeRemove) -> NodeRemoved: ...


class HttpAdminClient:
    """The API of a running controller."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def create(self, request: TokenRequest) -> TokenReply:
        return self._ask("POST", wire.TOKENS, TokenReply, request)

    def tokens(self) -> TokenList:
        return self._ask("GET", wire.TOKENS, TokenList)

    def revoke(self, token_id: str) -> bool:
        """Returns: False if it was revoked before."""
        return self._ask("POST", wire.TOKEN_REVOKE, wire.Ack, TokenRevoke(token_id)).ok

    def nodes(self) -> NodeList:
        return self._ask("GET", wire.NODES, NodeList)

    def remove(self, request: NodeRemove) -> NodeRemoved:
        return self._ask("POST", wire.NODE_REMOVE, NodeRemoved, request)

    def order(self, request: wire.OverrideRequest) -> None:
        """Order a region to train or to pause. Raises: Refused."""
        self._ask("POST", wire.OVERRIDE, wire.Ack, request)

    def provision(self) -> wire.ProvisionStatus:
        """Fetch the sites with a provisioner."""
        return self._ask("GET", wire.PROVISION, wire.ProvisionStatus)

    def order_site(self, request: wire.SiteOrder) -> None:
        """Keep a site's machines up or down. Raises: Refused."""
        self._ask("POST", wire.SITE_ORDER, wire.Ack, request)

    def status(self) -> wire.Status:
        """Fetch the status of the run."""
        return self._ask("GET", wire.STATUS, wire.Status)

    def _ask(self, method: str, path: str, kind: type[Reply], message: Any = None) -> Reply:
        import httpx

        content = wire.encode(message) if message is not None else None
        headers = {"Content-Type": "application/json"} if content is not None else {}
        try:
            response = self._http.request(method, path, content=content, headers=headers)
        except httpx.HTTPError as error:
            raise Unreachable(f"the controller does not answer: {error or type(error).__name__}") from error
        if response.is_success:
            return wire.decode(kind, response.content)
        try:
            problem = wire.decode(wire.Problem, response.content)
        except WireError:
            raise CurtailError(
                f"the controller answered with HTTP {response.status_code}", "see the controller's log"
            ) from None
        raise Refused(problem.message, problem.remedy or None)


class StoreAdminClient:
    """The store of a stopped controller."""

    def __init__(self, store: Store, pin: str | None) -> None:
        self._store, self._pin = store, pin

    def create(self, request: TokenRequest) -> TokenReply:
        from controller.auth import tokens

        return self._store.call(lambda tx: tokens.create(tx, request, self._pin, time.time()))

    def tokens(self) -> TokenList:
        from controller.auth import tokens

        return self._store.call(lambda tx: tokens.listing(tx, time.time()))

    def revoke(self, token_id: str) -> bool:
        from controller.auth import tokens

        return self._store.call(lambda tx: tokens.revoke(tx, token_id, time.time()))

    def nodes(self) -> NodeList:
        from controller.service.sites import node

        return self._store.call(
            lambda tx: NodeList(tuple(node(row, s.region, None) for s in tx.sites() for row in tx.machines(s.site)))
        )

    def remove(self, request: NodeRemove) -> NodeRemoved:
        from controller.service.sites import forget

        return NodeRemoved(self._store.call(lambda tx: forget(tx, request.site, request.agent)))


@contextlib.contextmanager
def open_admin_client(home: Path) -> Iterator[AdminClient]:
    """Open the API of the running controller of `home`, or the store of a stopped one.

    Raises: NotFound: no run there. Refused: its controller is just starting. AuthError, Unreachable.
    """
    from controller.auth.token_files import check_run
    from controller.home.home import lock
    from controller.store import Store

    check_run(home)
    try:
        held = lock(home)
    except Refused:
        with _running(home) as admin:
            yield admin
        return
    with held:
        store = Store(home / STORE)
        store.open()
        try:
            yield StoreAdminClient(store, _pin(home))
        finally:
            store.close()


@contextlib.contextmanager
def _running(home: Path) -> Iterator[AdminClient]:
    from controller.auth.token_files import reach
    from curtail.security.tls import open_with_token

    url, token = reach(home, Refused(f"the controller of {home} is starting or stopping", "try again in a moment"))
    # insecure: this machine connects to itself, and the operator chose how the controller listens.
    with open_with_token(url, token, insecure=True) as http:
        yield HttpAdminClient(http)


def _pin(home: Path) -> str | None:
    from controller.auth.authority import Files
    from curtail.security.tls import pin_of

    try:
        return pin_of(Files(home / TLS).authority.read_text(encoding="ascii"))
    except FileNotFoundError:
        return None


# -- the commands ----------------------------------------------------------------


def create(home: Path, request: TokenRequest, out: Path | None, as_json: bool) -> int:
    """Run `curtail token create`; returns the exit code. Raises: CurtailError; then no token was created."""
    if out is not None:
        _check_new(out)
    with open_admin_client(home) as admin:
        made = admin.create(request)
    if out is not None:
        from controller.auth.token_files import write_token_file

        write_token_file(out, made.token, SystemDisk())
        print(json.dumps({"id": made.id, "file": str(out)}) if as_json else f"token {made.id} is in {out}")
        return 0
    print(json.dumps(dataclasses.asdict(made)) if as_json else made.token)
    if not as_json:
        print(f"token {made.id}; pass it as a file or in CURTAIL_TOKEN, never on a command line", file=sys.stderr)
    return 0


def _check_new(out: Path) -> None:
    """Check before a token is created that `out` can be written; existing files are never overwritten.

    Raises: Refused, NotFound.
    """
    if out.exists() or out.is_symlink():
        raise Refused(f"{out} already exists", "give another name, or remove it")
    if not out.absolute().parent.is_dir():
        raise NotFound(f"the folder {out.absolute().parent} does not exist", "create it first")


def rotate(home: Path) -> int:
    """Run `curtail token rotate`: write a new HOME/join-token and revoke the old token."""
    from controller.auth.token_files import JOIN, read_token_file, write_token_file

    with open_admin_client(home) as admin:
        before = read_token_file(home / JOIN)
        made = admin.create(TokenRequest("agent", "", "", None, None, JOIN))
        write_token_file(home / JOIN, made.token, SystemDisk())
        if before is not None:
            with contextlib.suppress(NotFound, Refused):  # it may belong to an earlier run in this folder
                admin.revoke(before.id)
    print(f"{home / JOIN} holds the new token {made.id}; machines that have joined remain members")
    return 0


def list_tokens(home: Path, as_json: bool) -> int:
    """Run `curtail token list`."""
    with open_admin_client(home) as admin:
        found = admin.tokens().tokens
    if as_json:
        print(json.dumps([dataclasses.asdict(token) for token in found]))
        return 0
    rows = [("id", "role", "for", "used", "expires", "state", "note")]
    rows += [(t.id, t.role, t.site or t.region or "any", _used(t), _moment(t.expires), t.state, t.note) for t in found]
    print(table(rows))
    return 0


def revoke(home: Path, token_id: str) -> int:
    """Run `curtail token revoke`."""
    with open_admin_client(home) as admin:
        revoked = admin.revoke(token_id)
    how = "is revoked" if revoked else "was already revoked"
    print(f"token {token_id} {how}; machines that joined with it remain members, `curtail node rm` removes them")
    return 0


def list_nodes(home: Path, as_json: bool) -> int:
    """Run `curtail node list`."""
    with open_admin_client(home) as admin:
        found = admin.nodes().nodes
    if as_json:
        print(json.dumps([dataclasses.asdict(node) for node in found]))
        return 0
    rows = [("site", "region", "machine", "agent", "key", "gpus", "joined", "heard")]
    for n in found:
        heard = "left" if n.left else "-" if n.seen_s is None else f"{n.seen_s:.0f} s ago"
        rows.append((n.site, n.region, n.machine, n.agent[:8], n.key, str(n.devices), _moment(n.joined), heard))
    print(table(rows))
    return 0


def remove_node(home: Path, site: str, agent: str | None) -> int:
    """Run `curtail node rm`."""
    with open_admin_client(home) as admin:
        count = admin.remove(NodeRemove(site, agent)).count
    print(f"{count} machines of {site} removed; to keep them from rejoining, revoke the tokens that they may hold")
    return 0


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a text table with aligned columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _used(token: TokenInfo) -> str:
    return str(token.used) if token.uses is None else f"{token.used} of {token.uses}"


def _moment(at: float | None) -> str:
    return "never" if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")
