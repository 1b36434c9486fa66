"""What happens to the addresses of a seed's nodes: drawn acts, one after the other, then quiet, then the verdict of `addresses`."""

from __future__ import annotations

from random import Random

from dynamo.testing.addresses import QUIET_S, AddressWorld, Site
from dynamo.testing.checkers import Violation
from dynamo.testing.events import World

_ACTS = ("restart", "killed", "grow", "wiped", "swap", "rotate", "all new", "moved", "killed joiner")
_SITES_MAX = 8


def run_addresses(seed: int, *, log: bool = False) -> tuple[list[Violation], dict[str, int], list[str]]:
    """(what is wrong, what was done by name, a readable trace if asked for)."""
    events = World(seed, log=log)
    rng = events.stream("addresses")
    world = AddressWorld(events, rng)
    first = world.site()
    world.start(first)
    for _ in range(rng.randint(1, 4)):  # at once: they are let in by the one that is there
        _newcomer(world, rng)
    events.run(30.0)
    for _ in range(rng.randint(2, 5)):
        _act(world, rng, rng.choice(_ACTS))
        events.run(events.now + rng.uniform(15.0, 60.0))
    if rng.random() < 0.4:
        _founder_returns_empty(world, rng, first)
    _start_all(world, rng, [site for site in world.sites if site.process is None])
    events.run(events.now + QUIET_S)
    return world.judge(), world.counts, list(events.log or ())


def _newcomer(world: AddressWorld, rng: Random) -> Site:
    """A node that joins through some that are up, of which one may have gone."""
    named = [site.address for site in rng.sample(world.up(), min(2, len(world.up())))]
    site = world.site((*named, world.address()) if rng.random() < 0.3 else tuple(named))
    world.events.after(rng.uniform(0.0, 2.0), world.start, site)
    return site


def _start_all(world: AddressWorld, rng: Random, sites: list[Site]) -> None:
    for site in rng.sample(sites, len(sites)):
        world.events.after(rng.uniform(0.0, 5.0), world.start, site)


def _act(world: AddressWorld, rng: Random, act: str) -> None:
    """One thing that is done to some nodes."""
    world.note(act)
    up = world.up()
    served = [site for site in up if site.process is not None and site.process.ready]
    if act == "grow" and len(world.sites) < _SITES_MAX and up:
        for _ in range(rng.randint(1, 3)):
            _newcomer(world, rng)
    elif act == "killed joiner" and len(world.sites) < _SITES_MAX and up:
        site = _newcomer(world, rng)
        world.events.run(world.events.now + rng.uniform(0.0, 6.0))
        world.stop(site)
        _start_all(world, rng, [site])
    elif act == "wiped" and len(served) > 1:
        site = rng.choice(served)
        world.stop(site)
        site.stored, site.join = None, tuple(other.address for other in up if other is not site)
        _start_all(world, rng, [site])
    elif act in ("restart", "moved") and up:
        site = rng.choice(up)
        world.stop(site)
        if act == "moved":
            site.address = world.address()
        _start_all(world, rng, [site])
    elif act in ("killed", "swap", "rotate", "all new") and len(up) > 1:
        moving = rng.sample(up, 2) if act == "swap" else rng.sample(up, len(up))
        for site in moving:
            world.stop(site)
            site.join = ()
        addresses = [site.address for site in moving]
        if act == "all new":
            addresses = [world.address() for _ in moving]
        elif act != "killed":
            addresses = addresses[1:] + addresses[:1]
        for site, address in zip(moving, addresses, strict=True):
            site.address = address
            site.join = (addresses[0],) if act == "all new" else ()
        _start_all(world, rng, moving)
    else:
        return
    world.counts[act] = world.counts.get(act, 0) + 1


def _founder_returns_empty(world: AddressWorld, rng: Random, first: Site) -> None:
    """It lost its disk and is started as it always was: without `join`. A newcomer that is told of both clusters is let into neither."""
    others = [site for site in world.up() if site is not first]
    if not others or first.stored is None:
        return
    world.counts["founder returned empty"] = 1
    world.note("founder returns empty")
    world.stop(first)
    first.stored, first.join = None, ()
    world.events.after(1.0, world.start, first)
    world.events.run(world.events.now + rng.uniform(15.0, 30.0))
    named = [first.address, rng.choice(others).address]
    newcomer = world.site(tuple(rng.sample(named, 2)))
    world.start(newcomer)
    world.events.run(world.events.now + 5.0)
    if newcomer.process is not None:
        world.fault("mixed", f"{newcomer.name} was let in although it was told of two clusters")
