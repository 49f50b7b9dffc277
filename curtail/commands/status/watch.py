"""Fetches status snapshots and shows them: a live screen, plain text or JSON.

On a terminal `curtail status` draws a live screen; elsewhere it prints one snapshot.
The live screen keeps the last snapshot while the controller does not answer. The
contents of the screen are in `curtail.commands.status.view`. The terminal is always
restored, however the loop ends. Intervals in seconds of wall time.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit

from curtail import wire
from curtail.commands.status.viewer_tokens import GET_ONE, explaining, place, recall, remember
from curtail.errors import AuthError, CurtailError, Refused, Unreachable, UsageError, WireError
from curtail.security.tls import open_with_token, other_scheme
from curtail.security.token import parse_token
from curtail.system.process import unwinding_on_signals

if TYPE_CHECKING:
    import httpx
    from rich.console import Console

PLAIN_WIDTH = 100
"""Line width in characters if neither a terminal nor COLUMNS gives one."""

TIMEOUT_S = 5.0
"""Timeout for fetching a snapshot, in seconds."""

KEY_WAIT_S = 0.1
"""Polling interval for keys and window size, in seconds."""


@dataclass(frozen=True, slots=True)
class View:
    """The latest snapshot, and the failure since then, if any."""

    status: wire.Status | None = None
    problem: str | None = None
    since: float = 0.0  # wall time of the first of the consecutive failures

    def seen(self, status: wire.Status) -> View:
        """The view after an answer."""
        return View(status)

    def failed(self, problem: str, now: float) -> View:
        """The view after a failure: it keeps the old snapshot and the time of the first failure."""
        return View(self.status, problem, self.since if self.problem else now)

    def notice(self, now: float) -> str | None:
        """The warning above the snapshot, or None if the last fetch succeeded."""
        if self.problem is None:
            return None
        stamp = datetime.fromtimestamp(self.since).strftime("%H:%M:%S")
        return f"no answer since {stamp} ({now - self.since:.0f} s), showing the last status: {self.problem}"


def check_url(url: str) -> str:
    """`url` without a trailing slash.

    Raises: UsageError: it is not an http or https URL.
    """
    parts = urlsplit(url)
    try:
        fine = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:  # a port that is not a number
        fine = False
    if not fine:
        raise UsageError(f"{url!r} is not the address of a controller", "write it as https://HOST:PORT")
    return url.rstrip("/")


def fetch(http: httpx.Client, url: str) -> wire.Status:
    """Fetch the controller's status.

    Raises: Unreachable: no answer. Refused: the controller rejects the request. WireError: the server is
        not a controller, or one of another version.
    """
    import httpx

    try:
        response = http.get(url + wire.STATUS, timeout=TIMEOUT_S)
    except (httpx.TransportError, httpx.InvalidURL) as error:
        reason = str(error) or type(error).__name__
        remedy = other_scheme(error, url) or "check the address, and that the controller is running"
        raise Unreachable(f"no controller answers at {url} ({reason})", remedy) from error
    if response.status_code != 200:
        try:
            problem = wire.decode(wire.Problem, response.content)
        except WireError:
            raise WireError(
                f"{url} answered with HTTP {response.status_code}", "check that it is a curtail controller"
            ) from None
        if response.status_code in (401, 403):
            raise AuthError(problem.message, GET_ONE)
        raise Refused(problem.message, problem.remedy or None)
    try:
        return wire.decode(wire.Status, response.content)
    except WireError as error:
        raise WireError(
            f"the answer of {url} has an unknown format ({error.message})",
            "use the same version of curtail on both machines",
        ) from error


def speaks_unicode(stream: IO[str]) -> bool:
    """Whether the stream can show block characters."""
    encoding = (getattr(stream, "encoding", None) or "ascii").lower().replace("-", "")
    return encoding.startswith("utf") and os.environ.get("TERM", "") not in ("dumb", "linux")


def is_screen(stream: IO[str]) -> bool:
    """Whether a live screen can be drawn on the stream."""
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def show(
    url: str,
    *,
    as_json: bool,
    watch: bool | None,
    interval: float,
    token: str | None = None,
    server_name: str | None = None,
    state: Path | None = None,
    keep: bool = False,
    insecure: bool = False,
) -> int:
    """Run `curtail status`; returns the exit code.

    Args:
        watch: keep updating; None: if stdout is a terminal.
        interval: seconds between snapshots.
        token: a viewer token; required unless the controller's status is open.
        server_name: the name that the controller's certificate must hold, if not the host of `url`.
        state: this user's state folder with stored tokens; None: do not use stored tokens.
        keep: store `token` if it is valid.
        insecure: allow plain HTTP to an address other than loopback.
    Raises: CurtailError: the first snapshot cannot be fetched.
    """
    url = check_url(url)
    _tolerate(sys.stdout)
    if keep and not token:
        raise UsageError("--remember needs a token", "give one with --token-file or in CURTAIL_TOKEN")
    recalled = recall(state, url) if state is not None and not token else None
    token = token or recalled
    if token is None and url.startswith("https:"):
        raise AuthError(f"{url} requires a token", GET_ONE)
    used = place(state, url) if state is not None and recalled is not None else None
    with contextlib.ExitStack() as stack:
        with explaining(used):
            http = stack.enter_context(
                open_with_token(url, parse_token(token) if token else None, server_name, insecure)
            )
            status = fetch(http, url)
        if keep and token and state is not None:
            print(f"the token is stored in {remember(state, url, token)}", file=sys.stderr)
        if as_json:
            return _print_json(http, url, status, bool(watch), interval)
        if watch and not is_screen(sys.stdout):
            raise UsageError("--watch needs a terminal", "add --json for one snapshot per line, or omit --watch")
        if watch is False or not is_screen(sys.stdout):
            print_plain(status, sys.stdout)
            return 0
        poll = Poll(http, url, interval, View(status))
        with poll:
            live(lambda: poll.view)
    return 0


def print_plain(status: wire.Status, out: IO[str]) -> None:
    """Print the status as plain text without control characters."""
    from rich.console import Console

    from curtail.commands.status.view import render

    columns = os.environ.get("COLUMNS", "")
    width = int(columns) if columns.isdigit() and int(columns) >= 40 else PLAIN_WIDTH
    console = Console(width=width, color_system=None, force_terminal=False, highlight=False, markup=False)
    with console.capture() as captured:
        console.print(render(status, width, speaks_unicode(out)))
    out.write("".join(line.rstrip() + "\n" for line in captured.get().splitlines()))
    out.flush()


class Poll:
    """Fetches snapshots in a thread, so that a slow answer does not delay the handling of keys."""

    def __init__(self, http: httpx.Client, url: str, interval: float, view: View) -> None:
        self.view = view  # replaced as a whole, so a reader needs no lock
        self._http, self._url, self._interval = http, url, max(0.1, interval)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="poll", daemon=True)

    def __enter__(self) -> Poll:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(TIMEOUT_S)

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            try:
                self.view = self.view.seen(fetch(self._http, self._url))
            except CurtailError as error:
                self.view = self.view.failed(error.message, time.time())


def live(
    view: Callable[[], View], title: Callable[[], str] = lambda: "q quits", done: Callable[[], bool] = lambda: False
) -> bool:
    """Draw the views that `view` returns until q is pressed or `done` is true; always restores the terminal.

    Returns: whether q was pressed.
    """
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False, markup=False)
    unicode = speaks_unicode(sys.stdout)
    with (
        unwinding_on_signals(),
        keys() as read,
        Live(console=console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as screen,
    ):
        drawn: tuple[Any, ...] = ()
        while True:
            now = view()
            # redraw only after a change, so that the screen does not flicker
            key = (now.status, now.notice(time.time()), title(), console.size)
            if key != drawn:
                screen.update(picture(console, now, title(), unicode), refresh=True)
                drawn = key
            if read(KEY_WAIT_S).lower() == "q":
                return True
            if done():
                return False


def picture(console: Console, view: View, title: str, unicode: bool) -> Any:
    """The renderable for one frame that fills the console, with `title` as its last line."""
    from rich.console import Group
    from rich.text import Text

    from curtail.commands.status.view import render

    if view.status is None:
        return Text(view.problem or "waiting for the controller", no_wrap=True)
    width, height = console.size
    body = render(view.status, width, unicode, height - 1, view.notice(time.time()))
    lines = console.render_lines(body, console.options.update(width=width), pad=False)
    filler = max(0, height - 1 - len(lines))
    return Group(body, *[Text("") for _ in range(filler)], Text(title, style="dim", no_wrap=True))


@contextlib.contextmanager
def keys() -> Iterator[Callable[[float], str]]:
    """Yield a function that waits up to the given seconds for a key and returns it, or an empty string."""
    try:
        descriptor = sys.stdin.fileno()
        interactive = os.isatty(descriptor)
    except (ValueError, OSError, AttributeError):  # stdin is closed or replaced
        interactive = False
    if not interactive:
        yield _no_keys
        return
    import termios
    import tty

    before = termios.tcgetattr(descriptor)

    def read(seconds: float) -> str:
        ready, _, _ = select.select([descriptor], [], [], seconds)
        return os.read(descriptor, 32).decode(errors="replace") if ready else ""

    try:
        tty.setcbreak(descriptor)
        yield read
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _no_keys(seconds: float) -> str:
    time.sleep(seconds)
    return ""


def _print_json(http: httpx.Client, url: str, status: wire.Status, watch: bool, interval: float) -> int:
    while True:
        print(wire.encode(status).decode(), flush=True)
        if not watch:
            return 0
        time.sleep(max(0.1, interval))
        status = fetch(http, url)


def _tolerate(stream: IO[str]) -> None:
    # external names and reasons may hold unencodable characters, which must not raise
    if reconfigure := getattr(stream, "reconfigure", None):
        reconfigure(errors="replace")
