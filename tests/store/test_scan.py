"""Scans of the embedded store in pages of every size: exactly the live keys with the prefix, each once, in the order of the rows."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dynamo
from dynamo.replication import scan as policy

# Short keys collide in prefixes; long ones go on behind what a row key shows, and behind what it can hold.
KEYS = st.one_of(
    st.text("ab\xff", min_size=1, max_size=4).map(lambda text: text.encode("latin-1")),
    st.tuples(st.sampled_from([484, 485, 486, 487, 600]), st.binary(max_size=3)).map(lambda parts: b"a" * parts[0] + parts[1]),
)
PREFIXES = st.one_of(st.just(b""), KEYS)


@settings(max_examples=60)
@given(st.dictionaries(KEYS, st.booleans(), max_size=25), PREFIXES, st.integers(1, 30), st.integers(1, 4), st.integers(1, 300), st.integers(1, 3))
def test_pages_of_every_size(live: dict[bytes, bool], prefix: bytes, limit: int, rows: int, partitions: int, pages: int) -> None:
    with pytest.MonkeyPatch.context() as patch, dynamo.open("", durability="memory") as store:
        patch.setattr(policy, "PAGE_ROWS", rows)
        patch.setattr(policy, "PARTITIONS_PER_PAGE", partitions)
        patch.setattr(policy, "PAGES_MAX", pages)
        store.bucket("before").set("a", b"")
        store.bucket("default.after").set("a", b"")
        store.set_many(dict.fromkeys(live, b"v"))
        for key, lives in live.items():
            if not lives:
                store.delete(key, blind=True)
        expected = sorted(key for key, lives in live.items() if lives and key.startswith(prefix))
        whole = [result.key for result in store.scan(prefix)]
        assert sorted(whole) == expected
        first = list(store.scan(prefix, limit=limit))
        rest = store.scan(prefix, cursor=first[-1].cursor if first else None)
        assert [result.key for result in first] == whole[:limit]
        assert [result.key for result in rest] == (whole[limit:] if first else [])


def test_a_request_reads_a_bounded_number_of_pages_and_gets_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with dynamo.open("", durability="memory") as store:
        store.set_many({f"key-{i}": b"v" for i in range(500)})
        keys = [result.key for result in store.scan()]
        for key in keys[:-1]:
            store.delete(key, blind=True)
        monkeypatch.setattr(policy, "PAGES_MAX", 1)
        requests = []
        exchange = store._exchange
        monkeypatch.setattr(store, "_exchange", lambda request, deadline: requests.append(request) or exchange(request, deadline))
        assert [result.key for result in store.scan()] == keys[-1:]
        assert len(requests) >= 4 and len({request.fields[2] for request in requests}) == len(requests)
