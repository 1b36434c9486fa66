"""Ways to test what is built on dynamo, and dynamo itself: a deterministic simulator with checkers, and clusters of real processes.

    simulate(merge=..., workload=...)     try a merge function of your own under faults: docs/testing.md
    run(seed), run_many(seeds)            dynamo's own runs, as `dynamo simulate` does them
    Faults, Profile                       what goes wrong in a run, and how much it does
    History, check, Violation             the judges, for histories of real clusters too
    ServedCluster                         `dynamo serve` children to kill, stop and restart
    RecordingClient, judge                a history of such a cluster, and the verdict with what its disks hold

Nothing of the product imports this room, except the command line for `dynamo demo` and `dynamo simulate`. Names are imported when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

_MODULES = {
    "Faults": "faults",
    "History": "history",
    "Profile": "runner",
    "RecordingClient": "recorder",
    "Report": "runner",
    "ServedCluster": "cluster",
    "SimulationFailed": "merging",
    "Violation": "checkers",
    "check": "checkers",
    "judge": "stores",
    "run": "runner",
    "run_many": "runner",
    "simulate": "merging",
}

if TYPE_CHECKING:
    from dynamo.testing.checkers import Violation as Violation
    from dynamo.testing.checkers import check as check
    from dynamo.testing.cluster import ServedCluster as ServedCluster
    from dynamo.testing.faults import Faults as Faults
    from dynamo.testing.history import History as History
    from dynamo.testing.merging import SimulationFailed as SimulationFailed
    from dynamo.testing.merging import simulate as simulate
    from dynamo.testing.recorder import RecordingClient as RecordingClient
    from dynamo.testing.runner import Profile as Profile
    from dynamo.testing.runner import Report as Report
    from dynamo.testing.runner import run as run
    from dynamo.testing.runner import run_many as run_many
    from dynamo.testing.stores import judge as judge
else:  # out of sight of checkers, which then know exactly the names above
    __all__ = list(_MODULES)

    def __getattr__(name: str) -> object:
        """Import a public name on first use and keep it."""
        module = _MODULES.get(name)
        if module is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"{__name__}.{module}"), name)
        return value
