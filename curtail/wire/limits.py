"""Size limits of requests and messages, in bytes; and a function that makes a text fit.

Limits of single fields are annotations on the fields (`curtail.wire.bounds`).
"""

from __future__ import annotations

from curtail.wire.bounds import MAX_NOTE, UNPRINTABLE

MAX_REQUEST = 64 * 1024
"""Largest JSON body that a controller reads."""

MAX_HEADERS = 16 * 1024
"""Largest size of all header fields of a request, and of its request line."""

MAX_FIELDS = 64
"""Most header fields of a request."""

MAX_TARGET = 1024
"""Largest size of a request's path and query."""

MOST_ENTRIES = 100_000
"""Most entries of a list or an object in a message."""


def clean(text: str, longest: int = MAX_NOTE) -> str:
    """`text` with unprintable characters replaced, cut to `longest` characters."""
    text = UNPRINTABLE.sub("\ufffd", text)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
