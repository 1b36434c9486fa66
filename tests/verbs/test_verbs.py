"""The verbs, the same through the blocking client, the embedded store, the asynchronous client on both loops, and a node in this process."""

from __future__ import annotations

import math
from enum import IntEnum
from typing import Any

import pytest

import dynamo


def test_set_get_delete(kv: Any) -> None:
    absent = kv.get("a")
    assert (absent.found, absent.values, absent.value, absent.cursor) == (False, (), None, None)
    kv.set("a", b"1")
    assert kv.get(b"a").value == b"1"
    kv.delete("a", context=kv.get("a").context)
    gone = kv.get("a")
    assert not gone.found and gone.values == () and gone.context != absent.context
    with pytest.raises(TypeError, match="blind"):
        kv.delete("a")


def test_the_verbs_without_a_bucket_are_on_the_default_one(owner: Any) -> None:
    owner.set("alone", b"v")
    assert owner.bucket("default").get("alone").value == owner.get("alone").value == b"v"
    owner.delete("alone", blind=True)


def test_puts_without_a_context_are_siblings_until_a_put_merges_them(kv: Any) -> None:
    first = kv.put("a", b"1")
    second = kv.put("a", b"2")
    both = kv.get("a")
    assert sorted(both.values) == [b"1", b"2"] and {sibling.dot for sibling in both.siblings} == {first.dot, second.dot}
    with pytest.raises(dynamo.ConflictError):
        _ = both.value
    assert kv.get("a", resolver=lambda siblings: max(sibling.value for sibling in siblings)).value == b"2"
    kv.put("a", b"3", context=str(both.context))
    assert kv.get("a").value == b"3"


def test_a_context_of_another_key_is_refused(kv: Any) -> None:
    context = kv.set("a", b"1")
    with pytest.raises(dynamo.InvalidContext) as raised:
        kv.put("b", b"2", context=context)
    assert raised.value.maybe_applied is False and not kv.get("b").found


def test_an_empty_context_is_refused_and_nothing_is_written(kv: Any) -> None:
    context = kv.set("a", b"1")
    for empty in ("", b""):
        for wrong in (
            lambda empty=empty: kv.put("a", b"2", context=empty),
            lambda empty=empty: kv.delete("a", context=empty),
            lambda empty=empty: kv.put_many({"a": b"2"}, contexts={"a": empty}),
        ):
            with pytest.raises(dynamo.InvalidContext) as raised:
                wrong()
            assert raised.value.maybe_applied is False
    assert (kv.get("a").values, kv.get("a").context) == ((b"1",), context)


def test_a_blind_delete_of_what_was_never_there_writes_nothing(kv: Any) -> None:
    before = kv.get("a")
    context = kv.delete("a", blind=True)
    assert context == before.context and context.dot is None
    assert kv.get("a").context == before.context, "a tombstone would be in the context"
    kv.set("a", b"1")
    assert kv.delete("a", blind=True).dot is not None
    assert not kv.get("a").found


def test_update_reads_changes_and_writes(kv: Any) -> None:
    kv.update("a", lambda values: values[0] + b"1", default=b"0")
    kv.put("a", b"9")
    kv.update("a", lambda values: b"+".join(sorted(values)))
    assert kv.get("a").value == b"01+9"
    kv.update("a", lambda values: dynamo.DELETE)
    assert not kv.get("a").found
    with pytest.raises(ZeroDivisionError):
        kv.update("a", lambda values: 1 / 0)


def test_a_wrong_call_raises_before_anything_is_sent(kv: Any) -> None:
    for wrong, kind in [
        (lambda: kv.put("a", "text"), TypeError),
        (lambda: kv.put_many({"a": b"1", "b": "text"}), TypeError),
        (lambda: kv.put_many({"a": b"1", b"a": b"2"}), ValueError),
        (lambda: kv.put_many({"a": b"1"}, contexts={"b": b"token"}), ValueError),
        (lambda: kv.get("a", resolver=5), TypeError),
        (lambda: kv.put_many([("a", b"1")]), TypeError),
        (lambda: kv.set_many({"a"}), TypeError),
        (lambda: kv.set_many(None), TypeError),
        (lambda: kv.put_many({"a": b"1"}, contexts=["token"]), TypeError),
        (lambda: kv.put_many({"a": b"1"}, contexts=[]), TypeError),
        (lambda: kv.get("\udc80"), dynamo.InvalidKey),
        (lambda: kv.set("a\udc80", b"1"), dynamo.InvalidKey),
        (lambda: list(kv.scan("\udc80")), dynamo.InvalidKey),
        (lambda: kv.get_many("a"), TypeError),
        (lambda: kv.get_many(["a", 5]), TypeError),
        (lambda: kv.get("a", timeout=-1), ValueError),
        (lambda: list(kv.scan(limit=-1)), ValueError),
        (lambda: list(kv.scan(cursor="!")), dynamo.InvalidRequest),
        (lambda: list(kv.scan(5)), TypeError),
        (lambda: list(kv.scan("k" * 1025)), dynamo.KeyTooLong),
    ]:
        with pytest.raises(kind):
            wrong()
    assert not kv.get("a").found


def test_what_a_bucket_cannot_use_is_refused_when_it_is_made(owner: Any) -> None:
    class Encoder:
        def encode(self, value: Any) -> bytes:
            return b""

    for wrong in ({"codec": object()}, {"codec": Encoder()}, {"codec": "utf-8"}, {"resolver": 5}, {"resolver": "max"}):
        with pytest.raises(TypeError, match=f"a {next(iter(wrong))} "):
            owner.bucket("b", **wrong)
    for name, kind in (("", dynamo.InvalidKey), ("a b", dynamo.InvalidKey), ("\udc80", dynamo.InvalidKey), (5, TypeError), (None, TypeError)):
        with pytest.raises(kind):
            owner.bucket(name)


def test_a_bucket_makes_the_other_buckets_of_its_owner(kv: Any, owner: Any, bucket_name: str) -> None:
    other = kv.bucket(f"{bucket_name}-other", resolver=lambda siblings: b"resolved")
    other.put("a", b"1")
    other.put("a", b"2")
    assert other.get("a").value == b"resolved" and not kv.get("a").found
    assert len(owner.bucket(f"{bucket_name}-other").get("a").values) == 2 == len(other.bucket(f"{bucket_name}-other").get("a").values)


@pytest.mark.parametrize("timeout", [5_000_000, 1e12, 10**400, math.inf], ids=["months", "ages", "10**400", "inf"])
def test_a_time_without_end_is_taken_and_harms_nobody(kv: Any, timeout: float) -> None:
    kv.set("a", b"1", timeout=timeout)
    kv.update("a", lambda values: values[0] + b"2", timeout=timeout)
    assert kv.get("a", timeout=timeout).value == b"12"
    assert kv.get_many(["a"], timeout=timeout)[b"a"].value == b"12" == next(iter(kv.scan(timeout=timeout))).value
    assert isinstance(kv.put_many({"b": b"1"}, timeout=timeout)[b"b"], dynamo.Context)


@pytest.mark.parametrize("timeout", [0, -1, -math.inf, math.nan, True, "5", 1j])
def test_what_is_no_time_is_refused(kv: Any, timeout: Any) -> None:
    for wrong in (
        lambda: kv.set("a", b"1", timeout=timeout),
        lambda: kv.update("a", lambda values: b"1", timeout=timeout),
        lambda: kv.get("a", timeout=timeout),
        lambda: kv.get_many(["a"], timeout=timeout),
        lambda: next(iter(kv.scan(timeout=timeout))),
    ):
        with pytest.raises(ValueError, match="timeout is a number of seconds above 0"):
            wrong()
    assert not kv.get("a").found


class Name(bytes):
    pass


class Number(IntEnum):
    ONE = 1


def test_bytes_and_numbers_of_a_more_special_type_are_sent_as_what_they_are(kv: Any) -> None:
    kv.set(Name(b"a"), Name(b"1"), w=Number.ONE)
    kv.put_many({Name(b"b"): Name(b"2")})
    assert kv.get(Name(b"a"), r=Number.ONE).value == b"1" and len(list(kv.scan(Name(b""), limit=Number.ONE))) == 1
    kv.put("a", b"3", context=Name(bytes(kv.get("a").context)))
    assert kv.get("a").value == b"3"


@pytest.mark.parametrize("owner", ["client", "store"], indirect=True)
def test_dict_sugar(owner: Any, bucket_name: str) -> None:
    kv = owner.bucket(bucket_name)
    for missing in (lambda: kv["a"], lambda: kv.__delitem__("a")):
        with pytest.raises(KeyError, match="a"):
            missing()
    assert "a" not in kv and not kv.get("a").context.dot
    kv["a"] = b"1"
    kv["a"] = b"2"
    assert kv["a"] == b"2" and "a" in kv and b"a" in kv
    kv.put("a", b"3")
    with pytest.raises(dynamo.ConflictError):
        kv["a"]
    del kv["a"]
    assert "a" not in kv
    with pytest.raises(KeyError):
        del kv["a"]
    with pytest.raises(TypeError, match="not iterable"):
        iter(kv)
