"""What goes wrong in a run, as one value of probabilities and times; a random subset of it is drawn for each seed.

Times are virtual seconds. Faults come in storms, while clients are busy, for a fault that meets nobody finds nothing; partitions, pauses and full
disks outlast them. Fault points that the code of the simulator asks for by name (`World.fault_point`) can be forced: see `FAULT_POINTS`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from random import Random

FAULT_POINTS = {
    "message.drop": "a message between nodes, or to or from a client, is lost",
    "message.duplicate": "a message between nodes arrives twice",
    "message.slow": "a message takes up to a thousand times as long",
    "commit.fail": "the commit of a group fails once, the disk stays usable",
    "commit.slow": "the commit of a group takes long, while the other nodes' disks are quick",
    "ambush.crash": "an ambushed node dies between sending a write and committing it; else the commit fails",
    "stop.clean": "a node that is to stop does so in order, and keeps its actor",
    "group.kept": "the group in flight when a node died had reached the disk",
}


@dataclass(slots=True)
class Faults:
    """Probabilities (0..1), and mean times in virtual seconds; 0 = never."""

    drop: float = 0.0
    duplicate: float = 0.0
    slow: float = 0.0  # share of messages with a heavy-tailed delay
    reorder: bool = False  # messages of one link may overtake each other
    delay_mean_s: float = 0.001
    clog_interval_s: float = 0.0  # some link holds everything back for a while, then lets it through at once
    crash_interval_s: float = 0.0
    ambush_interval_s: float = 0.0  # some node's next writes have left, but are not committed yet, when it dies, or when their commit fails
    stop_clean: float = 0.25  # share of stops that are orderly
    blackout: float = 0.0  # share of crashes that take all nodes at once
    outage_s: float = 1.0
    partition_interval_s: float = 0.0
    partition_s: float = 3.0
    flapping_s: float = 0.0  # through a storm, one node is cut off for about this long, back for about as long, cut off again
    pause_interval_s: float = 0.0  # a node handles nothing for 0.1 to 60 s, then everything that came meanwhile
    clock_jump_interval_s: float = 0.0  # of the wall clock
    clock_drift: float = 0.0  # most by which a node's monotonic clock runs fast or slow
    disk_interval_s: float = 0.0  # a disk becomes full, fails, or becomes slow for a while
    disk_s: float = 3.0
    commit_s: float = 0.002
    commit_slow: float = 0.0  # share of groups that take a hundred times as long
    commit_failure: float = 0.0  # share of groups that fail, once each
    read_failure: float = 0.0  # share of reads that fail while a disk is failing
    rot_interval_s: float = 0.0  # a bit of some stored row flips
    row_loss: float = 0.0  # share of stops after which some rows are missing
    losses_max: int = 0  # whole stores wiped, replaced by new nodes, or set back to an old copy in one run
    late_joiners: int = 0
    leavers: int = 0
    notice_s: float = 0.05  # until the drivers notice a broken connection; 0 = they never do
    poll_s: float = 0.0  # a node takes what arrived every so often as one batch; 0 = each message at once
    forced: dict[str, float] = field(default_factory=dict)  # fault points with the probability they are forced to

    @classmethod
    def draw(cls, rng: Random) -> Faults:
        """A random subset, each in a random strength. Every draw is made, whether it counts or not, so that fields do not shift each other."""

        def some(chance: float, low: float, high: float) -> float:
            dice, strength = rng.random(), rng.uniform(low, high)
            return strength if dice < chance else 0.0

        return cls(
            drop=some(0.4, 0.0, 0.1),
            duplicate=some(0.3, 0.0, 0.1),
            slow=some(0.4, 0.0, 0.05),
            reorder=rng.random() < 0.5,
            delay_mean_s=rng.choice((0.0005, 0.002, 0.02)),
            clog_interval_s=some(0.3, 1.0, 5.0),
            crash_interval_s=some(0.6, 0.5, 5.0),
            ambush_interval_s=some(0.6, 0.2, 1.0),
            stop_clean=rng.choice((0.0, 0.25, 0.6)),
            blackout=some(0.3, 0.1, 0.4),
            outage_s=rng.choice((0.05, 0.3, 1.0, 5.0)),
            partition_interval_s=some(0.6, 1.0, 6.0),
            partition_s=rng.choice((0.5, 3.0, 20.0)),
            flapping_s=some(0.4, 0.5, 3.0),
            pause_interval_s=some(0.3, 2.0, 10.0),
            clock_jump_interval_s=some(0.3, 1.0, 10.0),
            clock_drift=some(0.3, 0.0, 0.05),
            disk_interval_s=some(0.4, 1.0, 8.0),
            disk_s=rng.choice((0.5, 3.0, 15.0)),
            commit_s=rng.choice((0.0005, 0.003, 0.02)),
            commit_slow=some(0.4, 0.0, 0.1),
            commit_failure=some(0.4, 0.005, 0.06),
            read_failure=some(0.3, 0.05, 0.5),
            rot_interval_s=some(0.3, 3.0, 20.0),
            row_loss=some(0.4, 0.3, 1.0),
            losses_max=rng.choice((0, 0, 1, 2)),
            late_joiners=rng.choice((0, 0, 0, 1, 2)),
            leavers=rng.choice((0, 0, 0, 0, 1)),
            notice_s=rng.choice((0.0, 0.01, 0.1, 1.0)),
            poll_s=rng.choice((0.0, 0.0, 0.0005, 0.005)),
        )

    @classmethod
    def none(cls) -> Faults:
        """Nothing goes wrong, and nothing takes long."""
        return cls(stop_clean=0.0)

    def but(self, **changes: object) -> Faults:
        """The same with other values for some fields."""
        return replace(self, **changes)  # type: ignore[arg-type]

    def __str__(self) -> str:
        plain = Faults.none()
        return ", ".join(f"{f.name}={getattr(self, f.name)}" for f in fields(self) if getattr(self, f.name) != getattr(plain, f.name)) or "none"
