"""A run of the load generator: processes that each drive a share of the connections, led from phase to phase, and summed up.

Several processes, because one may be the bottleneck before the servers are. They go through the same phases at the same time: all keys are written
once, then the load runs unmeasured for a while, then as often as asked measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import wait
from time import monotonic
from typing import Any

from dynamo import errors
from dynamo._core import CORE
from dynamo.bench.generator import work
from dynamo.bench.plan import Measured, Plan
from dynamo.errors import ConfigError, DynamoError, Timeout

PHASES = ("connecting", "writing all keys", "warming up")
SILENCE_S_MAX = 60.0

Progress = Callable[[str, int], None]


def run(plan: Plan, progress: Progress = lambda phase, answered: None, *, nodes_core: str = "") -> list[Measured]:
    """Run the plan and return what was measured, run by run. `progress` is told the phase and how many operations were answered in all.
    `nodes_core`: the core, `compiled` or `pure`, that the nodes are to be measured on; empty: whichever, but all the same.

    Raises DynamoError where a server cannot be reached, breaks a connection, refuses to take a key, or answers nothing for a minute, and where a node
    or a process of the generator runs on another core."""
    context = get_context("spawn")
    plan = replace(plan, processes=min(plan.processes, plan.connections))
    pipes: list[Any] = []
    children = []
    try:
        for number in range(plan.processes):
            ends = context.Pipe()
            try:
                child = context.Process(target=work, args=(plan, number, ends[1], CORE, nodes_core), daemon=True)
                children.append(child)
                pipes.append(ends[0])
                child.start()
            finally:
                ends[1].close()
        return _lead(plan, pipes, progress)
    finally:
        for pipe in pipes:
            pipe.close()
        for child in children:
            if child.pid is not None:  # else it was not started
                child.terminate()
                child.join()


def _lead(plan: Plan, pipes: list[Any], progress: Progress) -> list[Measured]:
    results: list[Measured] = []
    answered = [0] * len(pipes)
    for name in (*PHASES, *(f"run {at + 1} of {plan.runs}" for at in range(plan.runs))):
        outcomes = _phase(name, pipes, answered, progress)
        for pipe in pipes:
            pipe.send("go on")
        if name not in PHASES:
            total, *others = outcomes
            for part in others:
                if part.nodes_core != total.nodes_core:
                    raise ConfigError(f"some nodes run on the {part.nodes_core} core, others on the {total.nodes_core} one: measure one at a time")
                total.add(part)
            results.append(total)
    return results


def _phase(name: str, pipes: list[Any], answered: list[int], progress: Progress) -> list[Any]:
    """Wait until all processes are through with a phase. Returns what they measured."""
    outcomes = []
    waiting = set(pipes)
    give_up = monotonic() + SILENCE_S_MAX
    while waiting:
        for pipe in wait(list(waiting), max(0.0, give_up - monotonic())):
            what, value = _received(pipe, name)
            at = pipes.index(pipe)
            if what == "phase":
                waiting.discard(pipe)
                outcomes.append(value)
            elif value > answered[at]:
                answered[at] = value
                give_up = monotonic() + SILENCE_S_MAX
                progress(name, sum(answered))
        if monotonic() >= give_up and waiting:
            raise Timeout(f"{name}: nothing was answered for {SILENCE_S_MAX:.0f} s")
    return outcomes


def _received(pipe: Any, phase: str) -> tuple[str, Any]:
    try:
        what, value = pipe.recv()
    except EOFError:
        raise DynamoError(f"a process of the load generator ended while {phase}") from None
    if what == "error":
        kind, text = value
        raise getattr(errors, kind, DynamoError)(text)
    return what, value
