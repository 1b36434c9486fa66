"""The sending half of a step: what the replica asks for, in the order it asks for it.

Messages may leave at once; the group is committed; what waited for the group leaves after it, if it succeeded. While a group is in flight on
the commit thread the reactor goes on stepping the replica, which gives no further group before this one is reported.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from math import inf

from dynamo.errors import ValueTooLarge
from dynamo.model.group import Group
from dynamo.model.messages import PUT_REPLY, Message, NodeId, error_message
from dynamo.net.admission import Admission
from dynamo.net.commits import BufferedCommits, Commits
from dynamo.net.connection import Connection
from dynamo.net.driven import Batch, ReplicaLike
from dynamo.net.links import Links
from dynamo.net.local import LocalPort
from dynamo.net.peers import Peers
from dynamo.wire.frames import encode, encode_all
from dynamo.wire.parts import PART_BYTES, encode_whole, split

_log = logging.getLogger("dynamo.net")

BULK_BYTES = 256 * 1024  # of messages for one peer in one step, beyond which its large ones wait behind the others
LARGE_BYTES = 32 * 1024  # of one message
COMMITS_MAX = 4  # groups committed inline before the sockets are looked at again


class Pump:
    """Takes each Ready of the replica and does what it says."""

    def __init__(
        self,
        replica: ReplicaLike,
        commits: Commits,
        refresh: Callable[[], None],
        links: Links,
        peers: Peers,
        admission: Admission,
        frame_bytes_max: int,
        wake: Callable[[], None],
    ) -> None:
        self.clients: dict[int, Connection | LocalPort] = {}
        self.in_flight: Group | None = None
        self._after_commit: Batch = []
        self._replica = replica
        self._commits = commits
        self._buffered = commits if isinstance(commits, BufferedCommits) else None
        self._refresh = refresh
        self._links = links
        self._peers = peers
        self._admission = admission
        self._frame_bytes_max = frame_bytes_max
        self._wake = wake
        names = ("messages_out", "messages_too_large", "replies_dropped", "commits", "commits_failed", "flushes")
        self.counters = dict.fromkeys(names, 0)

    def run(self, now: float) -> None:
        """Send and commit in the order of each Ready, until there is nothing to commit or a commit is under way."""
        for _ in range(COMMITS_MAX):
            ready = self._replica.take_ready()
            self.send(ready.messages, now)
            if ready.group is None:
                self.send(ready.messages_after_commit, now)
                return
            # Invariant: one group at a time; a replica gives no new one before the former is reported.
            assert self.in_flight is None
            self.in_flight, self._after_commit = ready.group, ready.messages_after_commit
            self._links.flush_peers()  # the other replicas' disks work while ours does
            self._commits.submit(ready.group)
            if not self.report(now):
                return
        self._wake()

    def report(self, now: float) -> bool:
        """Tell the replica if the group in flight is done, and send what waited for it; and of flushes that ended. Whether there was anything."""
        if self.in_flight is None and self._buffered is None:
            return False
        completed = self._commits.completed()
        for group, error in completed:
            assert group is self.in_flight
            after, self.in_flight, self._after_commit = self._after_commit, None, []
            self._refresh()  # first: the replica forgets the group, so its reads must show it
            self.counters["commits"] += 1
            if error is None:
                self._replica.committed(group, now)
                self.send(after, now)
            else:
                self.counters["commits_failed"] += 1
                _log.error("commit group %d failed: %s", group.number, error)
                self._replica.commit_failed(group, error, now)
        flushed = self._buffered.flushed() if self._buffered is not None else []
        for number, error in flushed:
            self._refresh()
            self.counters["flushes"] += 1
            if error is not None:
                _log.error("a flush failed, nothing is accepted until one succeeds: %s", error)
            self._replica.flushed(number, error, now)
        return bool(completed or flushed)

    @property
    def next_deadline(self) -> float:
        """When `report` wants to be called though nothing happens."""
        return inf if self._buffered is None else self._buffered.next_deadline

    def send(self, messages: Batch, now: float) -> None:
        """Queue messages; those for a peer in one piece. What a step sends to whom in which order stays so for each destination."""
        if not messages:
            return
        to_peers: dict[NodeId, list[Message]] = {}
        answered, clients, push = 0, self.clients, self._links.push
        for destination, message in messages:
            if type(destination) is bytes:
                waiting = to_peers.get(destination)
                if waiting is None:
                    to_peers[destination] = [message]
                else:
                    waiting.append(message)
                continue
            assert type(destination) is int
            answered += 1
            client = clients.get(destination)
            if client is None:
                self.counters["replies_dropped"] += 1
            elif type(client) is Connection:
                frame = self._encode(message) or self._too_large(message)
                push(client, frame)
                client.answered(len(frame))
            else:
                assert type(client) is LocalPort
                client.deliver(message)
        if answered:
            self._admission.leave(answered)
        for node_id, waiting in to_peers.items():
            self._send_to_peer(node_id, waiting, now)
        self.counters["messages_out"] += len(messages)

    def _send_to_peer(self, node_id: NodeId, messages: list[Message], now: float) -> None:
        """In one piece over a link that is up. While there is none, as many as may wait for it do."""
        link = self._peers.link_to(node_id)
        if link is not None:
            try:
                frames = encode_all(messages, self._frame_bytes_max)
                if len(frames) <= BULK_BYTES or not link.takes_parts:
                    self._links.push(link, frames)
                    return
            except ValueTooLarge:
                pass  # one of them: the others go
        for message in messages:
            if link is not None and link.takes_parts:
                self._send_large(link, message)
            elif frame := self._encode(message):
                self._peers.send(node_id, frame, now)

    def _send_large(self, link: Connection, message: Message) -> None:
        """A message that may be larger than a frame, or one of many large ones: heartbeats and what clients wait for must not stand behind it."""
        try:
            frame = encode_whole(message)
        except ValueTooLarge as error:
            self._lost(message, error)
            return
        if len(frame) <= LARGE_BYTES:
            self._links.push(link, frame)
        elif not self._links.push_bulk(link, split(frame, min(PART_BYTES, self._frame_bytes_max // 2))):
            self._peers.dropped += 1

    def _encode(self, message: Message) -> bytes:
        """The frame of a message; b"" for one larger than others accept, which is lost as if by the network."""
        try:
            return encode(message, self._frame_bytes_max)
        except ValueTooLarge as error:
            self._lost(message, error)
            return b""

    def _lost(self, message: Message, error: ValueTooLarge) -> None:
        count = self.counters["messages_too_large"] = self.counters["messages_too_large"] + 1
        if not count & (count - 1):  # whatever makes one may make many
            _log.warning("a message of type %d is not sent: %s (%d so far)", message[0], error, count)

    @staticmethod
    def _too_large(message: Message) -> bytes:
        """What a client gets in place of an answer that does not fit into a frame."""
        text = "the answer does not fit into a frame; ask for fewer keys at once, or merge siblings"
        return encode(error_message(message[1], ValueTooLarge.code, text, message[0] == PUT_REPLY))

    def close(self, now: float) -> bool:
        """End the commits; one under way is waited for and reported. Returns whether everything the replica staged is on disk."""
        self._commits.close()
        failed_before = self.counters["commits_failed"]
        self.report(now)
        failed = self.counters["commits_failed"] != failed_before
        return not failed and self.in_flight is None and self._replica.take_ready().group is None
