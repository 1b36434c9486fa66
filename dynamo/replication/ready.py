"""What a step of a replica asks its driver to do, and in which order (etcd raft's `Ready`, in Dynamo's terms)."""

from __future__ import annotations

from dataclasses import dataclass

from dynamo.model.group import Group
from dynamo.model.messages import Message, Source


@dataclass(slots=True)
class Ready:
    """`messages` may be sent at once. `group`, if there is one, is to be committed; `messages_after_commit` may be sent only once that commit
    succeeded, and must be dropped if it failed. Report either outcome with `Replica.committed` or `commit_failed`, then take the next Ready."""

    group: Group | None
    messages: list[tuple[Source, Message]]
    messages_after_commit: list[tuple[Source, Message]]
