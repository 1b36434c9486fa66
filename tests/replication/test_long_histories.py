"""Keys whose history has grown over years of crashes: nothing is refused for it."""

from __future__ import annotations

import pytest

import dynamo
from dynamo._core import record as records
from dynamo.replication import tokens
from dynamo.replication.put import RANGES_WARNED


def test_a_token_never_has_more_ranges_than_it_may_and_covers_what_was_shown() -> None:
    context = b"".join(sorted(actor.to_bytes(8, "big") + (1).to_bytes(8, "big") * 2 for actor in range(1, 6000)))
    shown = records.put(b"", context, 5999, 1, 1, 1, bytes(16), b"v", False)
    fitted = tokens.fitted(records.context(shown), shown)
    assert len(fitted) == tokens.RANGES_BYTES_MAX and records.context_contains(fitted, 5999, 1)
    sealed = tokens.seal(bytes(32), b"k", 1, 0, fitted)
    assert tokens.unseal(bytes(32), b"k", 1, sealed) == (0, fitted)


@pytest.mark.parametrize("alone", [True, False])
def test_writes_that_make_nothing_worse_go_on_past_every_limit(alone: bool) -> None:
    with dynamo.open("", durability="memory") as store:
        core = store._replica.core
        core.alone = alone
        row_key = core.locate(b"default", b"k")[1]
        context = b"".join(actor.to_bytes(8, "big") + (1).to_bytes(8, "big") * 2 for actor in range(1, 6000))
        record = records.put(b"", context, 5999, 1, 1, 1, bytes(16), b"v", False)
        core.rows.stage(row_key, b"default", b"k", record, 0, 0, 0)
        store.set("k", b"w")
        store.put("k", b"x", context=store.get("k").context)
        assert store.get("k").values == (b"x",)
        row = core.rows.load(row_key)
        assert len(records.context(row.record)) // 24 == (1 if alone else 6000)  # type: ignore[union-attr]
        assert store.stats().get("long_contexts", 0) == (0 if alone else 2) and RANGES_WARNED < 6000
        store.delete("k", blind=True)
        assert not store.get("k").found
