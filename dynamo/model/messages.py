"""The messages of the protocol, as plain tuples: the same shape in a node's memory, in the simulator and, packed, on the wire.

A message is `(type, request_id, field, ...)`. Plain tuples, because a batch of a thousand of them crosses the hot path for each thousand
requests and an object each would cost more than the work. Fields are listed once, here; `docs/wire.md` specifies them for other languages and
`wire.messages` checks them. Unknown trailing fields are ignored, so that fields can be appended.

bytes: bucket, key, value, record, token, node_id (16), operation (16), digest (16). A ring id is two fields: number, hash.
Integers `r w pr pw` of 0 mean: the bucket's own setting. `time_ms` is the time *remaining*, never a clock reading.
"""

from __future__ import annotations

from typing import Any

Message = tuple[Any, ...]
NodeId = bytes
Source = int | NodeId  # a client's connection number, or the id of a peer
ERROR_TEXT_MAX = 1000  # characters
TIME_MS_MAX = 60_000  # the longest a node works on a request, whatever its client asked

# --- the first exchange -------------------------------------------------------------------------------------------------------------
HELLO = 1  # magic, protocol_min, protocol_max, format_min, format_max, cluster_id, partitions, tree_shape, role, node_id, incarnation,
#            boot_nonce, capabilities, auth, address
HELLO_REPLY = 2  # the same fields, then: known_actor, known_lease_end (the highest lease the answering node knows of the asking one; 0, 0)
JOIN = 3  # node_id, name, address                                   role `join` only
JOIN_REPLY = 4  # cluster document (packed map), members (tuple of member tuples)

# --- from clients -------------------------------------------------------------------------------------------------------------------
GET = 10  # bucket, key, r, pr, time_ms
PUT = 11  # bucket, key, value | None (tombstone), context token | None, mode, w, pw, time_ms, operation
GET_MANY = 12  # bucket, keys (tuple), r, pr, time_ms
CLUSTER_STATUS = 13  # -
PREFERENCE_LIST = 14  # bucket, key
SCAN = 15  # bucket, prefix, cursor (b"" = from the start), limit (0 = a page), time_ms, and if the client gives them: r, pr
PUT_MANY = 16  # bucket, entries: tuple of (key, value | None, context token | None, operation), mode, w, pw, time_ms
STATS = 17  # -

# --- to clients ---------------------------------------------------------------------------------------------------------------------
GET_REPLY = 20  # ring_number, ring_hash, owners_answered, token, siblings: tuple of (value, actor, counter, time), live ones, sorted by dot,
#                 tombstones: tuple of (actor, counter, time), which the token covers too
PUT_REPLY = 21  # ring_number, ring_hash, token, actor, counter, unseen_siblings, confirmed (nodes), durability
GET_MANY_REPLY = 22  # replies: a tuple of GET_REPLY or ERROR messages in the order of the keys
CLUSTER_STATUS_REPLY = 23  # document (packed map)
PREFERENCE_LIST_REPLY = 24  # document (packed map)
SCAN_REPLY = 25  # ring_number, ring_hash, entries: tuple of (key, token, siblings, cursor behind it), cursor (b"" = that was all), owners_answered
PUT_MANY_REPLY = 26  # replies: a tuple of PUT_REPLY or ERROR messages in the order of the entries
STATS_REPLY = 27  # document (packed map)
ERROR = 29  # code, text, maybe_applied, required, received

# --- between nodes ------------------------------------------------------------------------------------------------------------------
FORWARD = 40  # a PUT message; whoever gets it coordinates it and never forwards it again
FORWARD_REPLY = 41  # a PUT_REPLY or ERROR message
REPLICATE = 42  # bucket, key, record, purpose, target (node_id | b""), time_ms, ring_number, ring_hash, bucket_version, durability, operation
REPLICATE_REPLY = 43  # code (0 = stored), standing, durability given, digest stored, ring_number, ring_hash
READ = 44  # bucket, key, digest, time_ms, ring_number, ring_hash, bucket_version
READ_REPLY = 45  # code (0 = read), standing, digest, record | None (None: equals the digest asked with), ring_number, ring_hash
SCAN_READ = 46  # bucket, prefix, first_partition, end_partition, after (row key | b""), limit, ring_number, ring_hash
SCAN_READ_REPLY = 47  # code (0 = read), standing, rows: tuple of (row key, key, record), whole (nothing follows), ring_number, ring_hash;
#                      an empty record: the row is damaged
OFFER = 48  # entries: tuple of (bucket, key, digest), durability, ring_number, ring_hash
OFFER_REPLY = 49  # code (0 = compared), durability given, lacking: tuple of indexes into the entries, ring_number, ring_hash
GOSSIP = 50  # digest of the whole membership, entries: tuple of (node_id, incarnation, revision, admin_version); () begins an exchange;
#             behind them, where it is not 0: of how many of its partitions the sender does not hold all yet (`standings`)
GOSSIP_REPLY = 51  # digest, members (tuple of member tuples the asker lacks), wanted (node_ids to push); both () if the digests are equal
GOSSIP_PUSH = 52  # members (tuple of member tuples)
# anti-entropy: `roots`, `nodes`, `leaves` are rows of 8-byte hashes; n names the tree (buckets with another N have trees of their own)
TREE_ROOTS = 60  # ring_number, ring_hash, roots (of all trees both nodes hold, by n and partition)
TREE_ROOTS_REPLY = 61  # code (0 = compared), differing: tuple of indexes into the roots
TREE_NODES = 62  # partition, n, nodes (32 hashes)
TREE_NODES_REPLY = 63  # code, differing: tuple of node indexes, leaves (32 hashes for each of them)
TREE_KEYS = 64  # partition, n, leaves: tuple of leaf indexes, after (row key to go on behind, b"" = from the start), until (row key to end with, or b"")
TREE_KEYS_REPLY = 65  # code, entries: tuple of (bucket, key, first 8 bytes of the digest), cut (row key behind which more follows, b"" = nothing does)
# what a recovering owner asks those that hold its partitions
RECOVER = 66  # ring_number, ring_hash, n, partitions (tuple; empty: only whether the ring is the same)
RECOVER_REPLY = 67  # code (0 = the same ring), recovering: tuple of (partition, needs), for those of the partitions of which the node needs some;
#                     spoken: of how many of the partitions, from the first on, this tells

PART = 70  # last, data: bytes of a message that is larger than a frame; what is put together of them is the message without its length

# PUT modes
MODE_PUT, MODE_SET = 0, 1
# REPLICATE purposes
PURPOSE_WRITE, PURPOSE_READ_REPAIR, PURPOSE_HANDOFF, PURPOSE_ANTI_ENTROPY = 0, 1, 2, 3
# standings: what the answering node is to the key. A RECOVERING owner takes writes, but does not hold all yet (`replication.standings`): its answers to
# READ and SCAN_READ, and those of others that were in want when they lost the key, have one field more, needs: tuple of (count, node_ids)
OWNER, FALLBACK, RECOVERING = 0, 1, 2
# durabilities, weakest first; asked in REPLICATE, given in its answer: of a buffered node by how long it waits with that
DURABILITY_MEMORY, DURABILITY_BUFFERED, DURABILITY_RELAXED, DURABILITY_SYNCED = 0, 1, 2, 3
DURABILITIES = {"memory": 0, "buffered": 1, "relaxed": 2, "synced": 3}
# roles of a connection
ROLE_CLIENT, ROLE_PEER, ROLE_JOIN = 0, 1, 2


def left_out(reply: Message) -> int:
    """How many versions of its key a GET_REPLY does not show, and its token does not cover; a field behind the others, where there are any."""
    count = reply[8] if len(reply) > 8 else 0
    return count if type(count) is int else 0


def error_message(request_id: int, code: int, text: str, maybe_applied: bool, required: int = 0, received: int = 0) -> Message:
    """An ERROR message. A text that is too long for people is cut: it may quote what somebody sent."""
    if not text.isascii():  # it may quote a file name that is no text, which no frame takes
        text = text.encode("utf-8", "backslashreplace").decode()
    return (ERROR, request_id, code, text[:ERROR_TEXT_MAX], maybe_applied, required, received)
