"""A commit group: everything one step of a replica writes, applied by a storage engine in one atomic transaction or not at all."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Group:
    """One atomic commit. Values are encoded rows; None deletes. `synced` asks for durable storage whatever the engine's own mode is."""

    number: int
    objects: dict[bytes, bytes | None] = field(default_factory=dict)
    hints: dict[bytes, bytes | None] = field(default_factory=dict)
    meta: dict[bytes, bytes | None] = field(default_factory=dict)
    synced: bool = False
    prompt: bool = False  # somebody waits for the disk to have it: a write buffer is flushed sooner

    @property
    def only_removes(self) -> bool:
        """Whether it removes rows or hints and stores nothing."""
        changes = (*self.objects.values(), *self.hints.values())
        return bool(changes) and not self.meta and all(value is None for value in changes)
