"""Store: the embedded store of one process. The driver of a replica without a network.

    with dynamo.open("data") as store:
        store.set("alice", b"1 book")

It is a cluster of one node with N = 1, so records, contexts, siblings and the verbs are those of every other way of using dynamo. Threads share
a store: whoever gets the driver's lock steps the replica for all that wait (flat combining), so their writes share one commit group and
one fsync. Writes to one key, and a whole `update`, exclude each other.

A store belongs to the process that opened it. In a child that was forked its verbs raise RuntimeError, and closing it does nothing; both without
touching a lock, which a thread of the parent may have held at that moment.

What runs in the midst of a thread's work (a signal handler, a `__del__`, a weak reference's callback) may call the store that this thread is inside of.
Where that would wait for itself it is refused at once (`Reentered`), and else it works. An exception that comes from outside, such as Ctrl-C, leaves no
lock taken, wherever it comes (`storage.owned_lock`); where it breaks off a step, the next step begins with a new replica over what is on the disk.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
import warnings
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable
from random import Random
from time import monotonic
from types import TracebackType
from typing import Any, NoReturn, TypeVar
from uuid import UUID
from weakref import WeakSet

from dynamo._core import record as records
from dynamo._core import row as row_kernel
from dynamo.api.codec import Codec, key_bytes
from dynamo.api.context import Context
from dynamo.api.result import About, Resolver, Result, Sibling, make_siblings
from dynamo.api.update import MISSING, Change
from dynamo.client import verbs
from dynamo.client.addresses import seconds
from dynamo.client.core import Request, node_ms
from dynamo.client.verbs import Key, Place, Verb
from dynamo.client.verbs_blocking import Verbs, new_operation
from dynamo.errors import ConfigError, Reentered, StorageFailed, StorageFull, Timeout, Unavailable, from_wire
from dynamo.membership.members import Membership
from dynamo.model import messages as m
from dynamo.model.cluster import Cluster
from dynamo.model.group import Group
from dynamo.model.member import NORMAL
from dynamo.model.messages import Message
from dynamo.net import identity
from dynamo.replication import ActorLease, Replica, Settings
from dynamo.replication.core import Core
from dynamo.replication.get import sealed_token
from dynamo.storage.buffer import WriteBuffer
from dynamo.storage.data_directory import DataDirectory
from dynamo.storage.flush_thread import FlushThread, ending
from dynamo.storage.owned_lock import OwnedLock, run_holding

T = TypeVar("T")
Name = tuple[bytes, bytes]  # bucket, key
STRIPES = 64
RECORD_FORMAT = 1
_PAUSE_S = 0.05
_unopened = Result.unopened


class _Process:
    """The process this is, without a system call each time one is asked whether it was forked; and the stores that it has open."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.stores: WeakSet[Store] = WeakSet()
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self.pid = os.getpid()
        for store in self.stores:
            store._look.open = False


_process = _Process()


class _Reads(Verbs):
    """Gets of a store, or of one of its buckets."""

    @property
    def _store(self) -> Store:
        raise NotImplementedError

    _reader: row_kernel.Reader | None = None  # as long as it is, and where values have a codec, gets are requests
    _opener: _Opener
    _about: About

    def _prepare(self) -> None:
        """What plain gets need, once store and place are known."""
        store, place = self._store, self._place
        core = store._replica.core
        if place.codec is None:
            self._reader = row_kernel.Reader(store._engine.look, store._driver, core.cluster.seed, core.cluster.partitions, place.bucket)
        self._opener = _Opener(core, place.bucket)
        self._about = 1, place.resolver, None

    def get(self, key: Key, *, r: int | None = None, pr: int | None = None, resolver: Resolver | None = None, timeout: float | None = None) -> Result:
        """Read the key: its siblings and the context that covers them. Absent keys are no error; the result says `found`."""
        # Most gets are of a row that is there, sound and alone. To read it costs a few microseconds, as LMDB does, and to ask the replica a hundred. All of
        # it is in this one function and the kernel because a call of another costs a tenth of that.
        reader = self._reader
        if r is None and pr is None and timeout is None and resolver is None and reader is not None:
            name = key if type(key) is bytes else key_bytes(key)
            try:
                record = reader.record(name)
            except self._store._engine.look_errors:
                record = None
                self._store._look_anew()
            except BaseException:
                self._store._driver.let_go()
                raise
            if record is not None:
                return _unopened(name, self._opener, record, self._about)
        return self._run(verbs.get(self._place, key, r, pr, resolver), timeout)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} cannot be pickled or copied: it belongs to the process that opened it. Threads share it as it is; a child process "
            "opens a directory of its own, or asks this one"
        )


class Store(_Reads):
    """A store in a directory, open in this process and no other. Made by `dynamo.open`."""

    def __init__(self, path: str | os.PathLike[str] | bytes, *, durability: str = "synced", timeout: float = 60.0) -> None:
        self._pid = _process.pid
        self._place = Place.named("default")
        self._timeout = seconds(timeout)
        self._calls: deque[_Call] = deque()  # appended to by all threads, emptied by the driver
        self._driver = OwnedLock()  # Invariant: only its holder touches the replica and the engine
        self._stripes = [OwnedLock() for _ in range(STRIPES)]
        self._taken = 0  # calls given to the replica so far: the number of the last one
        self._waiting: dict[int, _Call] = {}  # those not yet answered
        self._own = _OfThread()
        self._closed = True  # until it is open
        self._flushes: FlushThread | None = None
        self._directory = _open_directory(path, durability)
        try:
            self._replica = self._start(self._directory.clean or self._directory.at_home)
            engine = self._engine = self._directory.engine
            self._prepare()
            # Invariant: open while a step is neither under way nor was broken off, the store not closed, and this its process.
            self._look = engine.look
            _process.stores.add(self)
            if isinstance(engine, WriteBuffer):
                self._flushes = FlushThread(engine, self._driver)
            self._look.open = True
            self._closed = False
        except BaseException:
            self._closed = True
            if self._flushes is not None:
                self._flushes.stop()
            self._directory.close(self._directory.clean)
            raise

    @property
    def _store(self) -> Store:
        return self  # not an attribute: a store that referred to itself would live on after the last reference to it

    def _start(self, keep: bool) -> Replica:
        """Learn or make the store's identity, and make it durable before anything is minted. `keep`: the actor that minted last may go on."""
        engine, random = self._directory.engine, Random(int.from_bytes(os.urandom(32), "big"))
        stored = identity.load(engine)
        if stored is None:
            node_id = os.urandom(identity.NODE_ID_BYTES)
            uuid = UUID(bytes=os.urandom(16), version=4).bytes
            cluster = Cluster(cluster_id=uuid, secret=os.urandom(32), seed=int.from_bytes(os.urandom(8), "big"), n=1)
        else:
            node_id, cluster = stored.node_id, stored.cluster
        membership = Membership(node_id)
        if stored is not None and stored.membership is not None:
            membership.load(stored.membership)
        if len(membership.members) > 1 or cluster.n != 1:
            raise ConfigError(f"{self._directory.path} belongs to a node of a cluster; start that with `dynamo serve`, or give another directory")
        actor = ActorLease.load(stored.actor if stored is not None else None, keep, random)
        membership.start("store", "", actor.actor, actor.lease_end, RECORD_FORMAT, status=NORMAL)
        identity.save(engine, node_id, cluster, membership.encode(), actor.encode())
        if home := self._directory.home():  # from here on: all that it will mint leaves the store after it is on the disk
            engine.commit(Group(0, meta=home, synced=True))
            engine.refresh()

        def scan(start: bytes, stop: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
            return engine.scan("objects", start, stop, limit)

        def scan_hints(start: bytes, stop: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
            return engine.scan("hints", start, stop, limit)

        self._actor = actor
        replica = Replica(
            Settings(), node_id, cluster, membership, actor, engine.read, scan, scan_hints, random, lambda: time.time_ns() // 1000,
            m.DURABILITIES[self._directory.durability], identity.stored_operations(engine),
        )  # fmt: skip
        replica.core.alone = True
        return replica

    # --- the verbs ------------------------------------------------------------------------------------------------------------------

    def update(self, key: Key, fn: Change, *, default: Any = MISSING, timeout: float | None = None) -> Context:
        """Read, apply `fn` to the list of live values, write what it returns. Atomic: no other write to the key comes between.

        So other writers of the key wait until `fn` has returned, and one that `fn` itself makes raises RuntimeError. It may write other keys; two
        updates that write each other's end in Timeout.
        """
        return self._update(self._place, key, fn, default, timeout)

    def bucket(self, name: str | bytes, *, resolver: Resolver | None = None, codec: Codec | None = None) -> StoreBucket:
        """The verbs on another bucket, with a rule that merges siblings and a codec for values, if given."""
        return StoreBucket(self, Place.named(name, codec, resolver))

    def stats(self) -> dict[str, int]:
        """Counts since the store was opened, by name."""
        self._check_open()
        return dict(self._replica.core.counters)

    def close(self) -> None:
        """Finish what is under way and leave the directory marked as cleanly stopped. Later calls raise RuntimeError."""
        if self._pid != _process.pid:
            return
        self._check_entry()
        self._driver.run(self._close)

    def _close(self) -> None:
        """Under the driver's lock. One that was broken off is brought to its end by the next."""
        if self._closed and self._directory.closed:
            return
        whole, self._look.open = self._look.open, False
        self._closed = True
        try:
            if self._flushes is not None:
                self._flushes.stop()
        finally:
            self._directory.close(clean=self._actor.staged is None and whole)

    def __del__(self) -> None:
        # Nobody has a reference, so no thread is inside, nothing waits, and what was acknowledged is committed: an orderly stop. What may run is a flush.
        if getattr(self, "_closed", True) or self._pid != _process.pid or sys.is_finalizing():
            return
        warnings.warn(f"{self!r} was never closed; use `with`, or call close()", ResourceWarning, source=self, stacklevel=2)
        _close_dropped(self._driver, self._close)

    def __enter__(self) -> Store:
        self._check_open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"dynamo.open({self._directory.path!r}, durability={self._directory.durability!r})"

    # --- driving ------------------------------------------------------------------------------------------------------------------

    def _run(self, verb: Verb[T], timeout: float | None) -> T:
        self._check_open()
        deadline = self._deadline(timeout)
        return verbs.run(verb, lambda request: self._exchange(request, deadline))

    def _update(self, place: Place, key: Key, fn: Change, default: Any, timeout: float | None) -> Context:
        self._check_open()
        name, deadline = (place.bucket, key_bytes(key)), self._deadline(timeout)

        def change(values: list[Any]) -> Any:
            try:
                self._own.updating.add(name)
                return fn(values)
            finally:
                self._own.updating.discard(name)

        def work() -> Context:
            verb = verbs.update(place, key, change, default, new_operation())
            return verbs.run(verb, lambda request: self._exchange(request, deadline))

        self._check_names([name])
        try:
            return self._exclusively([name], deadline, work)
        except BaseException:
            self._own.updating.discard(name)
            raise

    def _check_open(self) -> None:
        """First in every entry: before a lock is touched, or the engine."""
        self._check_alive()
        self._check_entry()

    def _check_alive(self) -> None:
        if self._pid != _process.pid:
            raise RuntimeError("the store was opened before a fork and is the parent's; open one after forking")
        if self._closed:
            raise RuntimeError("the store is closed")

    def _check_entry(self) -> None:
        """Raises Reentered where this thread has the driver's lock: it would wait for itself."""
        if self._driver.held_here():
            raise Reentered(
                "the store was called in the midst of its own work, by a signal handler, a __del__ or a callback in the thread that does that work; "
                "set a flag there or hand the call to another thread, and make it later"
            )

    def _look_anew(self) -> None:
        """A look failed. The request that is made instead meets the failure again, or does not."""
        self._check_entry()
        self._driver.run(self._refresh)

    def _refresh(self) -> None:
        if self._look.open:
            self._engine.refresh()

    def _deadline(self, timeout: float | None) -> float:
        return monotonic() + (self._timeout if timeout is None else seconds(timeout))

    def _exchange(self, request: Request, deadline: float) -> Message:
        """The replica's reply to a request; raises the error it stands for."""
        if request.elsewhere:
            raise Unavailable("there is no other node")
        call = _Call(request.message(0, node_ms(deadline - monotonic())), request.writes)
        if request.writes:
            names = _named(request)
            self._check_names(names)
            self._exclusively(names, deadline, lambda: self._wait(call, deadline))
        else:
            self._wait(call, deadline)
        reply = call.reply
        assert reply is not None
        if reply[0] == m.ERROR:
            raise from_wire(*reply[2:7])
        return reply

    def _wait(self, call: _Call, deadline: float) -> None:
        """Drive the replica until the call is answered, by this thread or by one that was faster. Raises Timeout."""

        def step() -> float | None:
            return self._drive() if call.reply is None else None

        self._check_entry()
        self._calls.append(call)
        while call.reply is None:
            try:
                due = self._driver.run(step, max(0.0, deadline - monotonic()))
            except TimeoutError as error:
                if isinstance(error, Timeout):
                    raise
                raise Timeout("the store was busy with other threads' requests", maybe_applied=call.writes) from None
            if call.reply is None:  # after a failed commit, puts wait until a new actor is on disk
                now = monotonic()
                if now >= deadline:
                    why = self._replica.core.storage_error  # which the disk gave, and a new actor waits for that
                    if why is None or self._replica.core.actor.usable:
                        raise Timeout("the store could not write in time", maybe_applied=call.writes)
                    raise type(why)(f"{why}; the write could not begin in its time", maybe_applied=call.writes)
                call.answered.acquire(timeout=max(0.0, min(deadline, now + _PAUSE_S if due is None else due) - now))

    def _drive(self) -> float | None:
        """Give the replica everything that waits, commit, and hand out its answers. Returns when it wants to be driven again."""
        self._check_alive()  # again: it may have been closed while this thread waited for the lock
        if not self._look.open:
            self._begin_anew()
        self._look.open = False  # until this step has come to its end: only an exception like Ctrl-C lets it not
        batch: list[tuple[m.Source, Message]] = []
        while self._calls:
            call = self._calls[0]
            if call.reply is None:
                self._taken += 1
                self._waiting[self._taken] = call  # before it leaves the queue, so that it is in one of the two whatever comes
                batch.append((self._taken, call.message))
            self._calls.popleft()
        replica, now = self._replica, monotonic()
        due = replica.next_deadline
        if due is not None and due <= now:
            replica.tick(now)
        replica.receive(batch, now)
        interrupted: BaseException | None = None
        while (ready := replica.take_ready()).messages or ready.group is not None:
            self._hand_out(ready.messages)
            if ready.group is not None:
                try:
                    self._commit(ready.group)
                except (StorageFull, StorageFailed) as error:
                    self._directory.leave_home()
                    replica.commit_failed(ready.group, error, now)
                except BaseException as error:  # it may be on disk or not: the others are told so, and this thread gets what it was sent
                    self._engine.refresh()
                    self._directory.leave_home()
                    replica.commit_failed(ready.group, StorageFailed("the commit was interrupted"), now)
                    interrupted = error
                else:
                    self._engine.refresh()
                    replica.committed(ready.group, now)
                    self._hand_out(ready.messages_after_commit)
        if self._flushes is not None:
            self._flushes.note()
        self._look.open = True
        if interrupted is not None:
            raise interrupted
        return replica.next_deadline

    def _commit(self, group: Group) -> None:
        if b"actor" in group.meta:
            group.meta.update(self._directory.home())
        if self._flushes is not None and ending():
            group.synced = True  # nobody will flush it
        self._engine.commit(group)

    def _begin_anew(self) -> None:
        """The last step was broken off: what it did is on the disk, or is forgotten, and whoever waits for it hears so."""
        for number, call in list(self._waiting.items()):
            if call.reply is None:
                call.answer(m.error_message(number, StorageFailed.code, "another thread was interrupted in the midst of this; try again", call.writes))
            del self._waiting[number]
        self._engine.refresh()
        self._directory.leave_home()
        self._replica = self._start(keep=False)

    def _hand_out(self, messages: list[tuple[m.Source, Message]]) -> None:
        """Answers to the calls they belong to; a call that has timed out is not there any more, or nobody looks at it."""
        for number, message in messages:
            assert isinstance(number, int), "a lone replica has no peers"
            self._waiting[number].answer(message)
            del self._waiting[number]

    def _check_names(self, names: list[Name]) -> None:
        """Raises RuntimeError for a write to a key that this thread is updating."""
        if not self._own.updating.isdisjoint(names):
            key = next(name[1] for name in names if name in self._own.updating)
            raise RuntimeError(f"a write to {key!r} from within an update of it; return the value instead")

    def _exclusively(self, names: list[Name], deadline: float, work: Callable[[], T]) -> T:
        """What `work` returns, called while this thread holds the stripes of these keys, in order, so that two writers cannot wait for each other. A thread
        that holds one already goes on with it, for other keys of the same stripe."""
        stripes = [self._stripes[stripe] for stripe in sorted({hash(name) % STRIPES for name in names})]
        try:
            return run_holding(stripes, lambda: max(0.0, deadline - monotonic()), work)
        except TimeoutError as error:
            if type(error) is TimeoutError:
                raise Timeout("another thread is writing to this key, or updating it") from None
            raise


class _Opener:
    """Reads results of a bucket's `get` out of their records."""

    def __init__(self, core: Core, bucket: bytes) -> None:
        self._core = core
        self._bucket = bucket

    single_value = staticmethod(records.single_value)

    def siblings_of(self, record: bytes) -> tuple[Sibling, ...]:
        """The live versions."""
        return make_siblings(records.visible(record)[0], None)

    def context_of(self, key: bytes, record: bytes) -> Context:
        """What covers all of it."""
        definition = self._core.cluster.bucket(self._bucket)
        time = records.visible(record)[2] if definition.record_kind == records.LAST_WRITE_WINS else 0  # no other token has one
        return Context(sealed_token(self._core, self._bucket, key, definition, record, time))


class _Call:
    """One request of one thread."""

    __slots__ = ("answered", "message", "reply", "writes")

    def __init__(self, message: Message, writes: bool) -> None:
        self.message = message
        self.writes = writes
        self.reply: Message | None = None
        # Not an Event or a Condition: those have a lock inside, which a signal handler may find taken by its own thread.
        self.answered = allocate_lock()
        self.answered.acquire()

    def answer(self, reply: Message) -> None:
        self.reply = reply
        if self.answered.locked():
            self.answered.release()


class _OfThread(threading.local):
    """What each thread has for itself: the keys whose `update` has called its function."""

    def __init__(self) -> None:
        self.updating: set[Name] = set()


class StoreBucket(_Reads):
    """The verbs on one bucket of a store. Made by `Store.bucket`. It has nothing of its own to close."""

    def __init__(self, store: Store, place: Place) -> None:
        self._opened = store
        self._place = place
        self._prepare()

    @property
    def _store(self) -> Store:
        return self._opened

    @property
    def name(self) -> str:
        """The bucket's name."""
        return self._place.bucket.decode("ascii")

    def bucket(self, name: str | bytes, *, resolver: Resolver | None = None, codec: Codec | None = None) -> StoreBucket:
        """Another bucket of the same store."""
        return self._store.bucket(name, resolver=resolver, codec=codec)

    def update(self, key: Key, fn: Change, *, default: Any = MISSING, timeout: float | None = None) -> Context:
        """Like `Store.update`."""
        return self._store._update(self._place, key, fn, default, timeout)

    def __repr__(self) -> str:
        return f"{self._store!r}.bucket({self.name!r})"

    def _run(self, verb: Verb[T], timeout: float | None) -> T:
        return self._store._run(verb, timeout)


def _named(request: Request) -> list[Name]:
    """The keys a write touches: PUT names one, PUT_MANY has entries that begin with theirs."""
    bucket, named = request.fields[:2]
    return [(bucket, named)] if isinstance(named, bytes) else [(bucket, entry[0]) for entry in named]


def _open_directory(path: str | os.PathLike[str] | bytes, durability: str) -> DataDirectory:
    """The directory; of a store that was dropped without being closed, and that only the collector of garbage can reach, too."""
    try:
        return DataDirectory(path, durability)
    except ConfigError as error:
        if "in this process" not in str(error):
            raise
    gc.collect()
    return DataDirectory(path, durability)


def _close_dropped(driver: OwnedLock, close: Callable[[], None]) -> None:
    """Close a store that nobody has any more. If that comes out in the midst of the store's own flush, which is in this very thread, another one does."""
    if driver.held_here():
        threading.Thread(target=driver.run, args=(close,), name="dynamo-close").start()
    else:
        driver.run(close)


def open(path: str | os.PathLike[str] | bytes, *, durability: str = "synced", timeout: float = 60.0) -> Store:
    """Open, or make, the embedded store in a directory: `dynamo.open`.

    `durability`: "synced" (default; an acknowledged write is on disk), "relaxed" (survives the process, not a power failure), "buffered" (a crash
    loses the writes of the last tenth of a second), "memory" (nothing is kept; the path is ignored). `timeout`: seconds that bound a call which does
    not give its own. Raises ConfigError for a directory that is in use, foreign, not writable, or of a cluster's node, and ValueError for a time-out
    that is none.
    """
    return Store(path, durability=durability, timeout=timeout)


__all__ = ["Store", "StoreBucket", "open"]
