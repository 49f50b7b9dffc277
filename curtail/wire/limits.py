"""Sizes of what may come in over the wire: bodies, headers, lists; and texts cut to what may be sent.

What one field of a message may hold is on the field itself (`curtail.wire.bounds`). Nothing here reads or sends
anything. Sizes are in bytes.
"""

from __future__ import annotations

from curtail.wire.bounds import MAX_NOTE, UNPRINTABLE

MAX_REQUEST = 64 * 1024
"""Bytes of the largest JSON body that a controller reads."""

MAX_HEADERS = 16 * 1024
"""Bytes of all header fields of a request together, and of its first line with what is cut off of it."""

MAX_FIELDS = 64
"""Header fields of a request."""

MAX_TARGET = 1024
"""Bytes of a request's path and query."""

MOST_ENTRIES = 100_000
"""Entries of a list or an object in a message."""


def clean(text: str, longest: int = MAX_NOTE) -> str:
    """`text` as it may be sent: what cannot be printed is replaced, what is too long is cut at its end."""
    text = UNPRINTABLE.sub("\ufffd", text)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
