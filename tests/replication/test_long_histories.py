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


def test_the_context_of_a_read_tells_of_no_actor_that_is_over_where_there_never_was_a_peer() -> None:
    with dynamo.open("", durability="memory") as store:
        core = store._replica.core
        context = b"".join(actor.to_bytes(8, "big") + (1).to_bytes(8, "big") * 2 for actor in range(1, 100))
        record = records.put(b"", context, 99, 1, 1, 1, bytes(16), b"v", False)
        core.rows.stage(core.locate(b"default", b"k")[1], b"default", b"k", record, 0, 0, 0)
        store.set("other", b"w")  # which commits it
        for result in (store.get("k"), store.get("k", timeout=10.0), next(store.scan(prefix="k"))):
            _, shown = tokens.unseal(core.cluster.secret, b"default\0k", records.SIBLINGS, result.context.token)
            assert result.value == b"v" and records.context_contains(shown, 99, 1) and len(shown) == 24
