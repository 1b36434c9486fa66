"""Who mints dots here, and which counters it may still use.

An actor is one incarnation of one store (DESIGN section 2). Its counters must never be issued twice, so they are leased on disk in blocks:
a counter leaves the process only under a lease committed in an *earlier* group, and a restart goes on behind the lease. Wherever the store
may have forgotten what it minted (a copied or restored directory, an unclean stop, a failed commit, a context that knows more than we do)
the actor is not repaired but replaced: a fresh random u64 has no history to contradict.

Riak re-used an actor after such amnesia and lost data for years (riak_kv#679); this module is where that door is kept shut.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from random import Random

LEASE_BLOCK = 1 << 20
_ACTORS_OF_A_LIFE = 16
_FORM = struct.Struct(">BQQ")
_FORMAT = 1


class ActorLease:
    """The current actor, the last counter it issued, and the end of its durable lease.

    `usable` is False while a new actor or lease waits for the commit that makes it durable; nothing can be minted then. Nor while `unconfirmed`: an
    actor that goes on after a clean stop of a cluster's node waits for a peer's word that the life it knows of is the one on this disk, for a whole
    machine set back to an old state cannot tell by itself.
    """

    __slots__ = ("_announced", "_kept_from", "actor", "issued", "lease_end", "of_this_life", "staged", "unconfirmed")

    def __init__(self, actor: int, issued: int, lease_end: int, kept_from: int = 0) -> None:
        assert actor != 0 and 0 <= issued <= lease_end
        self.actor = actor
        self.issued = issued
        self.lease_end = lease_end
        self.staged: tuple[int, int] | None = None  # (actor, lease end) on its way to the disk
        self.unconfirmed = False
        self._kept_from = kept_from  # the lease end that the last life left; 0 for an actor of this life
        self._announced = {lease_end}  # those of this life
        # Those that minted in this life, of many the newest: failed commits end them one after another.
        self.of_this_life: tuple[int, ...] = (actor,)

    @classmethod
    def load(cls, meta: bytes | None, clean: bool, random: Random) -> ActorLease:
        """The actor to start with, to be made durable (`encode`) before anything is minted.

        `clean`: this very directory was stopped cleanly, or was cut off where nothing ever left ahead of its commit. Then the old actor goes on behind
        its old lease; in any other case a new one begins.
        """
        if meta is not None and clean and len(meta) == _FORM.size:
            form, actor, end = _FORM.unpack(meta)
            if form == _FORMAT and actor != 0 and end < (1 << 63):
                # The length is random, so that two lives that went on from the same stop are told apart (`contradicted_by`).
                return cls(actor, end, end + LEASE_BLOCK + random.randrange(LEASE_BLOCK), kept_from=end)
        return cls(_fresh(random), 0, LEASE_BLOCK)

    def encode(self) -> bytes:
        """What the meta table keeps: the newest lease, durable or on its way."""
        actor, end = self.staged or (self.actor, self.lease_end)
        return _FORM.pack(_FORMAT, actor, end)

    @property
    def kept(self) -> bool:
        """Whether the actor was minting in an earlier life."""
        return self._kept_from > 0

    def contradicted_by(self, actor: int, lease_end: int) -> bool:
        """Whether a peer's knowledge of this node's lease comes from a life that this disk does not know: it is an old copy, and the actor must go."""
        return actor == self.actor and lease_end > self._kept_from and lease_end not in self._announced

    @property
    def usable(self) -> bool:
        """Whether a counter may be minted now."""
        return self.issued < self.lease_end and not self.unconfirmed and (self.staged is None or self.staged[0] == self.actor)

    def next_counter(self) -> int:
        """The counter the next dot will have. It counts as issued only with `issue`."""
        assert self.usable
        return self.issued + 1

    def issue(self, counter: int) -> None:
        """Mark the counter as issued, for ever."""
        # Invariant: counters of one actor strictly increase and never pass the durable lease.
        assert counter == self.issued + 1 <= self.lease_end
        self.issued = counter

    @property
    def wants_extension(self) -> bool:
        """Whether half of the lease is used up and no longer one is on its way."""
        return self.staged is None and self.lease_end - self.issued < LEASE_BLOCK // 2

    def extend(self) -> None:
        """Stage a longer lease for the current actor; minting goes on under the durable one."""
        self.staged = (self.actor, self.lease_end + LEASE_BLOCK)

    def renew(self, random: Random) -> None:
        """Stage a new actor; nothing is minted until it is durable."""
        if self.staged is None or self.staged[0] == self.actor:
            self.staged = (_fresh(random), LEASE_BLOCK)

    def durable(self, encoded: bytes) -> None:
        """A commit made this encoded lease durable."""
        _, actor, end = _FORM.unpack(encoded)
        if self.staged != (actor, end):
            return  # a newer one was staged meanwhile and will follow
        self.staged = None
        if actor != self.actor:
            self.actor, self.issued, self._kept_from, self.unconfirmed = actor, 0, 0, False
            self.of_this_life = (*self.of_this_life[1 - _ACTORS_OF_A_LIFE :], actor)
        self.lease_end = end
        self._announced.add(end)


def _fresh(random: Random) -> int:
    return random.getrandbits(64) or 1
