"""What may come in over the wire: ranges of numbers, lengths and characters of texts, sizes of bodies.

One table for all messages that the controller takes in (`RULES`), and one rule for
each type where the table says nothing. `curtail.wire` holds every message against
them as it decodes it; the controller's document at /openapi.json is made of the
same rules. Nothing here reads or sends anything. Sizes are in bytes, times in seconds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from curtail.errors import WireError

MAX_REQUEST = 64 * 1024
"""Bytes of the largest JSON body that a controller reads."""

MAX_HEADERS = 16 * 1024
"""Bytes of all header fields of a request together, and of its first line with what is cut off of it."""

MAX_FIELDS = 64
"""Header fields of a request."""

MAX_TARGET = 1024
"""Bytes of a request's path and query."""

LARGEST = 2**53 - 1
"""The largest whole number that every JSON library reads exactly; a store's column holds more."""

NAME = r"[A-Za-z0-9_.\-]{1,64}"
HASH = r"[0-9a-f]{64}"


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number from `low` to `high`."""

    low: int = -LARGEST
    high: int = LARGEST

    def check(self, value: int, where: str) -> None:
        """Raises: WireError: it is outside."""
        if not self.low <= value <= self.high:
            raise WireError(f"{where}: the number is outside of {self.low} to {self.high}")


@dataclass(frozen=True, slots=True)
class Real:
    """A finite number from `low` to `high`."""

    low: float = -1e30
    high: float = 1e30

    def check(self, value: float, where: str) -> None:
        """Raises: WireError: it is outside."""
        if not self.low <= value <= self.high:
            raise WireError(f"{where}: the number is outside of {self.low:g} to {self.high:g}")


@dataclass(frozen=True, slots=True)
class Text:
    """A text of at most `longest` characters.

    `form` is a pattern that all of it must match, and `said` says it in words. Without one it is free text,
    whose characters must be good to print on a terminal.
    """

    longest: int
    form: str = ""
    said: str = ""

    def check(self, value: str, where: str) -> None:
        """Raises: WireError: too long or with a character that is not allowed. The text itself is not repeated."""
        if len(value) > self.longest:
            raise WireError(f"{where}: the text has {len(value)} characters, at most {self.longest} are allowed")
        if self.form and not re.fullmatch(self.form, value):
            raise WireError(f"{where}: the text must be {self.said}")
        if not self.form and UNPRINTABLE.search(value):
            raise WireError(f"{where}: the text holds a control character")


Rule = Whole | Real | Text

UNPRINTABLE = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]")
"""Control characters but tab and line feed, marks that turn the direction of writing, and halves of characters."""

_SURROGATE = re.compile("[\\ud800-\\udfff]")

COUNT = Whole(0)
VERSION = Whole(0, 2**31)
NAMED = Text(64, NAME, "1 to 64 letters, digits, dots, dashes and underscores")
MAYBE_NAMED = Text(64, rf"({NAME})?", "empty, or 1 to 64 letters, digits, dots, dashes and underscores")
HASHED = Text(64, HASH, "64 lower-case hex digits, a SHA-256")
MAYBE_HASHED = Text(64, rf"({HASH})?", "empty, or 64 lower-case hex digits, a SHA-256")
WORD = Text(32, r"[A-Za-z][A-Za-z0-9_\-]{0,31}", "one word")
SECONDS = Real(0.0, 1e9)
WATTS = Real(0.0, 1e9)
JOULES = Real(0.0, 1e18)
LOSS = Real(-1e39, 1e39)  # any float32; sums of them stay finite
NOTE = 4096
"""Characters of a free text in a request; `clean` cuts a longer one before it is sent."""

RULES: dict[str, dict[str, Rule]] = {
    "JoinRequest": {
        "protocol": Whole(0, 10_000),
        "agent": NAMED,
        "site": NAMED,
        "region": NAMED,
        "machine": Text(255),
        "devices": Whole(1, 4096),
        "token": Text(4096),
        "machines": Whole(1, 64),
        "address": Text(255, r"[A-Za-z0-9_.:%\[\]\-]*", "an address or host name, or empty"),
        "port": Whole(0, 65535),
        "key": Text(128, r"[A-Za-z0-9+/=]*", "a public key in base64, or empty"),
    },
    "RenewRequest": {"agent": NAMED, "site": NAMED},
    "Heartbeat": {
        "agent": NAMED,
        "site": NAMED,
        "fence": COUNT,
        "state": WORD,
        "phase": WORD,
        "job": NAMED,
        "watts": WATTS,
        "note": Text(NOTE),
        "crew": MAYBE_NAMED,
        "crew_rank": Whole(0, 63),
        "crew_size": Whole(1, 64),
    },
    "Power": {
        "meter": MAYBE_NAMED,
        "method": Text(128, r"[A-Za-z0-9_.+\-]*", "names of methods with + between them"),
        "seconds": SECONDS,
        "joules": JOULES,
        "gpu_joules": JOULES,
        "host_joules": JOULES,
    },
    "OverrideRequest": {
        "region": MAYBE_NAMED,
        "action": WORD,
        "seconds": SECONDS,
        "by": Text(128),
        "reason": Text(NOTE),
    },
    "LeaveRequest": {"agent": NAMED, "site": NAMED, "fence": COUNT, "reason": Text(NOTE)},
    "CheckoutRequest": {
        "site": NAMED,
        "fence": COUNT,
        "job": NAMED,
        "held_version": VERSION,
        "held_digest": MAYBE_HASHED,
    },
    "Progress": {
        "site": NAMED,
        "fence": COUNT,
        "job": NAMED,
        "round": VERSION,
        "step": COUNT,
        "tokens": COUNT,
        "loss": LOSS,
        "tokens_per_s": Real(0.0, 1e15),
    },
    "CommitRequest": {
        "site": NAMED,
        "fence": COUNT,
        "job": NAMED,
        "round": VERSION,
        "base_version": VERSION,
        "base_digest": HASHED,
        "steps": COUNT,
        "samples": COUNT,
        "tokens": COUNT,
        "blob": HASHED,
        "codec": WORD,
        "digest": MAYBE_HASHED,
        "loss_first": LOSS,
        "loss_mean": LOSS,
        "loss_last": LOSS,
        "seconds": SECONDS,
    },
    "BlobOffer": {"sha256": HASHED, "size": Whole(1)},
    "TokenRequest": {
        "role": WORD,
        "site": MAYBE_NAMED,
        "region": MAYBE_NAMED,
        "uses": Whole(1, 1_000_000),
        "expires_s": Real(0.0, 1e10),
        "note": Text(256),
    },
    "TokenRevoke": {"id": NAMED},
    "NodeRemove": {"site": NAMED, "agent": NAMED},
    # what an agent takes in and acts on at once
    "JoinReply": {"heartbeat_s": Real(0.01, 1e6), "fence": COUNT},
    "HeartbeatReply": {"heartbeat_s": Real(0.01, 1e6), "valid_s": SECONDS, "hold_s": SECONDS},
    "Crew": {"rank": Whole(0, 63), "size": Whole(1, 64)},
    "CheckoutReply": {"retry_s": Real(0.0, 3600.0)},
    "Assignment": {
        "round": VERSION,
        "base_version": VERSION,
        "lease_start": COUNT,
        "lease_stop": COUNT,
        "train_s": SECONDS,
        "tokens_before": COUNT,
        "tokens_per_step": COUNT,
        "members": COUNT,
        "steps": COUNT,
        "rate_factor": Real(0.0, 1e6),
        "memory_factor": Real(0.0, 1e6),
    },
    "BlobStatus": {"sha256": HASHED, "size": COUNT, "part_bytes": Whole(1, 2**30)},
    "RunInfo": {
        "manifest": HASHED,
        "sequence_len": Whole(1, 2**31),
        "token_budget": COUNT,
        "batch_samples": Whole(1),
        "device_batch_samples": COUNT,
        "rewarm_steps": COUNT,
        "outage_s": SECONDS,
    },
    # what a site may say must be told again
    "SiteStatus": {"loss": LOSS},
    "Status": {"loss_first": LOSS, "loss_last": LOSS},
}
"""Message -> field -> what its value may be. Every number and text of a request has its rule."""

MOST_ENTRIES = 100_000
"""Entries of a list or an object in a message."""

_BY_TYPE: dict[type, Rule] = {int: Whole(), float: Real()}


def rule_of(message: str, name: str) -> Rule | None:
    """The rule of a field; None: that of its type."""
    return RULES.get(message, {}).get(name)


def check(rule: Rule | None, value: int | float | str, where: str) -> None:
    """Hold a number or text of the right type against its rule.

    Args: rule: None: the rule of the type.
    Raises: WireError: names the field `where` and what is allowed.
    """
    if isinstance(value, bool):
        return
    if rule is not None:
        rule.check(value, where)  # type: ignore[arg-type]  # a rule belongs to the field, whose type was checked
    elif isinstance(value, str):
        if _SURROGATE.search(value):  # it could not be written to the store or a file
            raise WireError(f"{where}: the text holds half of a character")
    else:
        _BY_TYPE[type(value)].check(value, where)  # type: ignore[arg-type]


def clean(text: str, longest: int = NOTE) -> str:
    """`text` as it may be sent: what cannot be printed is replaced, what is too long is cut at its end."""
    text = UNPRINTABLE.sub("\ufffd", text)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
