"""Try a merge function of your own in simulated clusters: `simulate(merge=..., workload=...)`. Described in docs/testing.md.

Many clients edit one value through the product's own `update`, while nodes crash, links part and messages are lost. Whenever siblings are met, they are
merged with the function under test, in whatever order and grouping they came. What must hold of a merge that every reader runs on its own is
checked on the siblings that really occurred: it does not depend on their order, and merging again, or merging in what is in it already, changes
nothing. At the end the last value is given to a check that knows which edits were acknowledged.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from dynamo.api.codec import Codec
from dynamo.api.update import MISSING
from dynamo.client import verbs
from dynamo.client.verbs import Place
from dynamo.errors import DynamoError
from dynamo.testing.checkers import Violation
from dynamo.testing.client import OPERATION_BYTES, SimulatedClient
from dynamo.testing.events import World
from dynamo.testing.faults import Faults
from dynamo.testing.runner import build, converge, judge
from dynamo.testing.simulator import SimulatedCluster

Merge = Callable[[list[Any]], Any]
Edit = Callable[[Any], Any]  # the merged value, None where there is none yet -> the new value
Check = Callable[[Any, Sequence[Edit]], None]

_BUCKET, _KEY = b"default", b"value"
_THINK_S = 0.05
_TIMEOUT_S = 2.0
_VIRTUAL_S_MAX = 3600.0


class JsonCodec:
    """The codec used where none is given."""

    def encode(self, value: Any, /) -> bytes:
        return json.dumps(value, sort_keys=True).encode()

    def decode(self, data: bytes, /) -> Any:
        return json.loads(data)


@dataclass(slots=True)
class Outcome:
    """One seed: the value in the end, the edits that were acknowledged, and what went wrong."""

    seed: int
    value: Any = None
    acknowledged: list[Edit] = field(default_factory=list)
    merges: int = 0
    violations: list[Violation] = field(default_factory=list)


class SimulationFailed(AssertionError):
    """At least one seed shows a violation. `outcome` is the first such seed's; the text says how to run it again."""

    def __init__(self, outcome: Outcome) -> None:
        lines = "\n".join(f"  {violation}" for violation in outcome.violations)
        super().__init__(f"seed {outcome.seed}:\n{lines}\nrun it again with seeds=[{outcome.seed}]")
        self.outcome = outcome


def simulate(
    *,
    merge: Merge,
    workload: Callable[[Random], Edit],
    check: Check | None = None,
    seeds: Iterable[int] = range(50),
    edits: int = 60,
    codec: Codec | None = None,
    faults: Faults | None = None,
) -> list[Outcome]:
    """Run the seeds and return their outcomes. Raises SimulationFailed at the first with a violation.

    `merge(values)`: one value of one or more siblings' values. `workload(random)`: the next edit some client makes, a function from the merged value
    (None if there is none yet) to the new one. `check(value, acknowledged)`: raises AssertionError where the last value does not show all acknowledged
    edits as it should; edits in doubt may show or not. Values pass through `codec` (JSON).
    """
    outcomes = []
    for seed in seeds:
        outcome = _Simulation(seed, merge, workload, edits, codec or JsonCodec(), faults).run(check)
        outcomes.append(outcome)
        if outcome.violations:
            raise SimulationFailed(outcome)
    return outcomes


class _Simulation:
    """One seed."""

    def __init__(
        self, seed: int, merge: Merge, workload: Callable[[Random], Edit], edits: int, codec: Codec, faults: Faults | None
    ) -> None:  # fmt: skip
        drawn = faults or Faults.draw(World(seed).stream("faults"))
        # No disk is lost: what that may cost is the store's business, not the merge function's.
        self.cluster: SimulatedCluster = build(seed, faults=drawn.but(losses_max=0, rot_interval_s=0.0, row_loss=0.0))
        self.outcome = Outcome(seed)
        self._merge = merge
        self._workload = workload
        self._codec = codec
        self._left = edits
        self._rng = self.cluster.world.stream("edits")
        self._place = Place(_BUCKET)

    def run(self, check: Check | None) -> Outcome:
        """Edit under faults, heal, judge."""
        cluster, world = self.cluster, self.cluster.world
        for client in cluster.clients.values():
            self._next(client)
        cluster.storm = True
        while self._left > 0 and world.now < _VIRTUAL_S_MAX:
            cluster.nemesis.storm(world.now + 5.0)
            world.run(world.now + 5.0)
        cluster.storm = False
        converge(cluster)
        report = judge(cluster, 0, [])
        self.outcome.violations.extend(report.violations)
        self._finish(check)
        return self.outcome

    def _next(self, client: SimulatedClient) -> None:
        if self._left <= 0 or self.cluster.world.healed:
            return
        self._left -= 1
        edit = self._workload(self._rng)
        operation = self._rng.randbytes(OPERATION_BYTES)

        def change(values: list[bytes]) -> bytes:
            found = [self._codec.decode(value[OPERATION_BYTES:]) for value in values]
            merged = self._merged(found) if found else None
            return operation + self._codec.encode(edit(merged))

        def done(result: Any, error: DynamoError | None) -> None:
            if error is None:
                self.outcome.acknowledged.append(edit)
            self.cluster.world.after(self._rng.expovariate(1 / _THINK_S), self._next, client)

        client.run(verbs.update(self._place, _KEY, change, MISSING, operation), _TIMEOUT_S, done)

    def _merged(self, values: list[Any]) -> Any:
        """The merge of siblings, having seen to it that it keeps the laws."""
        value = self._merge(list(values))
        if len(values) > 1:
            self.outcome.merges += 1
            self._law(value == self._merge(values[::-1]), f"the merge of {values!r} depends on their order")
            self._law(value == self._merge([value, value]), f"merging {value!r} with itself changes it")
            for one in values:
                self._law(value == self._merge([value, one]), f"merging {one!r} into {value!r}, which has it already, changes it")
        return value

    def _law(self, holds: bool, text: str) -> None:
        if not holds and len(self.outcome.violations) < 10:
            self.outcome.violations.append(Violation("merge", text, time=self.cluster.world.now))

    def _finish(self, check: Check | None) -> None:
        """Merge what is left, and let the user's check judge it."""
        values: dict[str, Any] = {}
        for owner in self.cluster.live():
            for operation, value in self.cluster.values_of(owner, _BUCKET, _KEY).items():
                values.setdefault(operation, self._codec.decode(value[OPERATION_BYTES:]))
        if values:
            self.outcome.value = self._merged([values[operation] for operation in sorted(values)])
        if check is not None and not self.outcome.violations:
            try:
                check(self.outcome.value, tuple(self.outcome.acknowledged))
            except AssertionError as error:
                self.outcome.violations.append(Violation("check", str(error) or "the check failed", time=self.cluster.world.now))
