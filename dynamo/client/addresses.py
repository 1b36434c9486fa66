"""What every client is made with: addresses of nodes, and a time-out."""

from __future__ import annotations

from collections.abc import Iterable

from dynamo.config import join_address, split_address
from dynamo.errors import ConfigError

SCHEME = "dynamo://"
TIMEOUT_S_MAX = 86_400.0
"""The longest time that is waited for anything; clocks, locks and sockets take no number of seconds without end."""


def parse_addresses(addresses: str | Iterable[str]) -> tuple[str, ...]:
    """`host:port,host:port`, each or all after `dynamo://`, or several of them -> normal addresses. Raises TypeError, ConfigError."""
    texts = [addresses] if isinstance(addresses, str) else list(addresses) if isinstance(addresses, Iterable) else [addresses]
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"addresses of nodes are text, host:port,host:port, or several of them; not {type(text).__name__}")
    parts = [part for text in texts for each in text.split(",") if (part := each.strip().removeprefix(SCHEME).rstrip("/"))]
    if not parts:
        raise ConfigError("give the address of at least one node: host:port,host:port or dynamo://host:port,host:port")
    return tuple(dict.fromkeys(join_address(*split_address(part)) for part in parts))


def seconds(timeout: float) -> float:
    """The time to wait. A longer one than a day, `math.inf` included, counts as a day. Raises ValueError for what is no number of seconds above 0."""
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0:
        raise ValueError(f"timeout is a number of seconds above 0, not {timeout!r}")
    return TIMEOUT_S_MAX if timeout > TIMEOUT_S_MAX else float(timeout)
