"""The blocking client and the asynchronous one on both loops behind one blocking face, for tests of what all three must do."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import trio

import dynamo


class Blocking:
    """The blocking client."""

    def __init__(self, addresses: Iterable[str], **options: Any) -> None:
        self.client = dynamo.Client(addresses, **options)

    def run(self, *calls: tuple[Any, ...]) -> list[Any]:
        """What each call (verb, argument...) returns or raises, one after the other."""
        return [outcome(lambda call=call: getattr(self.client, call[0])(*call[1:])) for call in calls]

    def close(self) -> None:
        self.client.close()


class _Async:
    def __init__(self, addresses: Iterable[str], **options: Any) -> None:
        self.client = dynamo.AsyncClient(addresses, **options)

    async def _all(self, calls: tuple[tuple[Any, ...], ...]) -> list[Any]:
        found = []
        for name, *arguments in calls:
            try:
                found.append(await getattr(self.client, name)(*arguments))
            except Exception as error:
                found.append(error)
        return found

    def close(self) -> None:
        """Its connections ended with the loop of the last run; any loop will do."""
        trio.run(self.client.close)


class OnTrio(_Async):
    """The asynchronous client; each run is a new run of Trio."""

    def run(self, *calls: tuple[Any, ...]) -> list[Any]:
        found: list[Any] = trio.run(self._all, calls)
        return found


class OnAsyncio(_Async):
    """The same in asyncio."""

    def run(self, *calls: tuple[Any, ...]) -> list[Any]:
        return asyncio.run(self._all(calls))


def outcome(call: Any) -> Any:
    try:
        return call()
    except Exception as error:
        return error


ALL = [Blocking, OnTrio, OnAsyncio]
