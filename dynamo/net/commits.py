"""Where a commit group is applied, with one interface for both ways: `submit` a group, then collect what is `completed`.

`CommitThread` (storage) returns from `submit` when the thread waits for the disk, and calls back when it is done. `InlineCommits` does the
whole work within `submit`: right where a commit does not wait for a disk, since handing it to a thread would cost more than it.
"""

from __future__ import annotations

from typing import Protocol

from dynamo.errors import DynamoError, StorageFailed, StorageFull
from dynamo.model.group import Group


class Committing(Protocol):
    """What is needed of a storage engine."""

    def commit(self, group: Group) -> None: ...


class Commits(Protocol):
    """At most one group is submitted and not yet completed."""

    def submit(self, group: Group) -> None: ...
    def completed(self) -> list[tuple[Group, DynamoError | None]]: ...
    def close(self) -> None: ...


class InlineCommits:
    """Commits on the caller's thread."""

    __slots__ = ("_completed", "_engine")

    def __init__(self, engine: Committing) -> None:
        self._engine = engine
        self._completed: list[tuple[Group, DynamoError | None]] = []

    def submit(self, group: Group) -> None:
        """Commit now; a storage error becomes part of what is completed."""
        try:
            self._engine.commit(group)
        except (StorageFull, StorageFailed) as error:
            self._completed.append((group, error))
        else:
            self._completed.append((group, None))

    def completed(self) -> list[tuple[Group, DynamoError | None]]:
        """What was submitted since the last call."""
        completed, self._completed = self._completed, []
        return completed

    def close(self) -> None:
        """Nothing is left to do."""
