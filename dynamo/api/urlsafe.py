"""Opaque bytes as text for a shell variable, a header or a form field: base64 for URLs, without padding."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode


def encode(data: bytes) -> str:
    """The text for some bytes; always the same one."""
    return urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def decode(text: str) -> bytes:
    """The inverse. Raises ValueError for any other text than `encode` returned."""
    data = urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
    # The decoder skips characters outside its alphabet and stray last bits; what was altered on its way must not pass as something else.
    if encode(data) != text:
        raise ValueError("no url-safe base64, or altered")
    return data
