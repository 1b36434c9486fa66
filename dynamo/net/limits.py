"""Bounds of a node's network side. Each keeps one kind of misbehaviour from costing more than its own connection."""

from __future__ import annotations

from dataclasses import dataclass

from dynamo.wire.frames import FRAME_BYTES_MAX

MEBIBYTE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """Checked where the bytes arrive or leave. Times in seconds."""

    frame_bytes_max: int = FRAME_BYTES_MAX
    """Largest frame accepted. What is larger goes to other nodes in parts, and to clients as much of it as fits."""

    connections_max: int = 10_000
    """Connections at once, peers included. One more is accepted and closed, so that its owner tries elsewhere instead of waiting."""

    hello_timeout_s: float = 5.0
    """From accept to a complete HELLO; absolute, so that sending it byte by byte gains nothing."""

    connect_timeout_s: float = 1.0
    """From dialling a peer to its HELLO_REPLY. Longer waits for slow networks, shorter notices dead machines sooner."""

    retry_s: float = 0.05
    retry_s_max: float = 2.0
    """Wait before a peer is dialled again: doubles from the first to the second with each failure in a row, jittered by half either way."""

    stray_retry_s_max: float = 30.0
    """The same where another node was found at the peer's address. It is dialled at once when its address changes."""

    output_bytes_max: int = 16 * MEBIBYTE
    """Unsent bytes of one connection. A reader slower than that is cut off: it would otherwise be buffered without end. So that a client that
    asks for much at once is not, its requests are let in by a window: so many that answers like the last ones fill half of this."""

    output_pause_bytes: int = 1 * MEBIBYTE
    """Unsent bytes at which no more of a client's requests are let in: it should first take the answers it has asked for."""

    output_stall_s: float = 30.0
    """A client that takes none of the output that waits for it for so long, or up to twice as long, is cut off: what is kept for it is within the
    bounds, but of such clients there may be many."""

    requests_in_flight_max: int = 1024
    """Requests of clients that the replica was given and owes an answer, over all connections; one connection may have as many as are free, so half of them at
    most. Beyond it they are refused as busy, see `admission`. More admits longer queues, and answers that come after their client has gone; fewer
    leaves a node waiting for its peers with nothing to do."""

    output_total_bytes_max: int = 512 * MEBIBYTE
    input_total_bytes_max: int = 256 * MEBIBYTE
    """The same over all connections: unsent output, and unfinished frames. The connection that passes the bound is closed."""

    bulk_bytes_max: int = 64 * MEBIBYTE
    """Large messages that wait for one peer, behind all others: records handed over, repaired or read. One is always let in; beyond this bound more are
    dropped, as if the network had lost them, and those who sent them send them again. More keeps a wide link busy, and costs memory."""

    queue_bytes_max: int = 8 * MEBIBYTE
    """Messages that wait for a peer's connection to come up. Beyond it new ones are dropped, as if the network had lost them."""
