"""Verbs for many keys: the same as one call for each, in fewer requests, however large the values are."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dynamo

MEBIBYTE = 1 << 20
_examples = count()

# What is done to a key: nothing, one of these, or two in a row. "under" writes with the context of the read before it.
DEEDS = st.lists(st.sampled_from(["put", "set", "under", "delete"]), max_size=2)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(DEEDS, min_size=1, max_size=6))
def test_many_are_as_many_single_ones(owner: Any, deeds: list[list[str]]) -> None:
    number = next(_examples)
    one, many = owner.bucket(f"one-{number}"), owner.bucket(f"many-{number}")
    keys = [f"key-{i}" for i in range(len(deeds))]
    for step in range(2):
        doing = {key: deed[step] for key, deed in zip(keys, deeds, strict=True) if step < len(deed)}
        values = {key: dynamo.DELETE if deed == "delete" else f"{step}-{key}".encode() for key, deed in doing.items()}
        contexts = {key: many.get(key).context for key, deed in doing.items() if deed in ("under", "delete")}
        sets = {key: values[key] for key, deed in doing.items() if deed == "set"}
        puts = {key: values[key] for key, deed in doing.items() if deed != "set"}
        outcomes = many.put_many(puts, contexts=contexts) | many.set_many(sets)
        assert set(outcomes) == {key.encode() for key in doing}
        assert all(isinstance(outcome, dynamo.Context) and outcome.dot for outcome in outcomes.values())
        for key, deed in doing.items():
            if deed == "set":
                one.set(key, values[key])
            else:
                one.put(key, values[key], context=one.get(key).context if key in contexts else None)
    found = many.get_many([*keys, "absent"])
    assert list(found) == [*(key.encode() for key in keys), b"absent"] and not found[b"absent"].found
    for key in keys:
        assert found[key.encode()].values == many.get(key).values and found[key.encode()].context == many.get(key).context
        if deeds[keys.index(key)][1:] != ["set"]:  # a set replaces what its coordinator holds, and in a cluster that may lag by one write
            assert sorted(found[key.encode()].values) == sorted(one.get(key).values)


def test_more_keys_than_one_request_takes(kv: Any) -> None:
    values = {b"key-%d" % i: b"%d" % i for i in range(300)}
    assert all(isinstance(outcome, dynamo.Context) for outcome in kv.set_many(values).values())
    assert {key: result.value for key, result in kv.get_many(values).items()} == values
    assert kv.put_many({}) == kv.get_many([]) == {}


def test_values_that_do_not_fit_into_one_frame_together(kv: Any) -> None:
    values = {b"key-%d" % i: bytes([i]) * MEBIBYTE for i in range(20)} | {b"small-%d" % i: b"v" for i in range(20)}
    assert all(isinstance(outcome, dynamo.Context) for outcome in kv.set_many(values, timeout=30).values())
    found = kv.get_many(values, timeout=30)
    assert {key: result.value for key, result in found.items()} == values


def test_what_goes_wrong_with_one_stands_in_its_place(kv: Any) -> None:
    foreign = kv.set("other", b"v")
    large = b"v" * (MEBIBYTE + 1)
    huge = b"v" * (9 * MEBIBYTE)
    outcomes = kv.put_many({"fine": b"1", "foreign": b"2", "large": large, "huge": huge}, contexts={"foreign": foreign})
    assert isinstance(outcomes[b"fine"], dynamo.Context)
    assert isinstance(outcomes[b"foreign"], dynamo.InvalidContext) and not outcomes[b"foreign"].maybe_applied
    for key in (b"large", b"huge"):
        assert isinstance(outcomes[key], dynamo.ValueTooLarge) and not outcomes[key].maybe_applied
    assert [result.found for result in kv.get_many(["fine", "foreign", "large", "huge"]).values()] == [True, False, False, False]


def test_a_key_that_is_none_does_not_stand_in_the_way_of_the_others(kv: Any) -> None:
    long, text = b"k" * 1025, "k" * 1025
    bad = {long: dynamo.KeyTooLong, b"": dynamo.InvalidKey, "\ud800".encode("utf-8", "surrogatepass"): dynamo.InvalidKey}
    for write in (kv.put_many, kv.set_many):
        outcomes = write({"a": b"1", text: b"2", "": b"3", "\ud800": b"4", b"b": b"5"})
        assert list(outcomes) == [b"a", *bad, b"b"]
        assert all(type(outcomes[key]) is kind and not outcomes[key].maybe_applied for key, kind in bad.items())
        assert all(isinstance(outcomes[key], dynamo.Context) for key in (b"a", b"b"))
    found = kv.get_many([text, "a", long, b"a", "", "\ud800", "b"])
    assert list(found) == [long, b"a", b"", "\ud800".encode("utf-8", "surrogatepass"), b"b"]
    assert all(type(found[key]) is kind for key, kind in bad.items())
    assert all(found[key].found for key in (b"a", b"b"))
    assert list(kv.get_many([long])) == list(kv.set_many({long: b"v"})) == [long]


def test_a_context_or_a_value_that_is_none_concerns_its_key_alone(owner: Any, bucket_name: str) -> None:
    class Small:
        def encode(self, value: bytes) -> bytes:
            if len(value) > 1:
                raise dynamo.ValueTooLarge("one byte is enough")
            return value

        def decode(self, data: bytes) -> bytes:
            return data

    kv = owner.bucket(bucket_name, codec=Small())
    outcomes = kv.put_many({"a": b"1", "b": b"2", "c": b"34"}, contexts={"b": "!", b"a": None})
    assert isinstance(outcomes[b"a"], dynamo.Context)
    assert isinstance(outcomes[b"b"], dynamo.InvalidContext) and isinstance(outcomes[b"c"], dynamo.ValueTooLarge)
    for wrong in ({"k" * 1025: b"1", b"k" * 1025: b"2"}, {"a": b"1", b"a": b"2"}):
        with pytest.raises(ValueError, match="given twice"):
            kv.put_many(wrong)
    with pytest.raises(ValueError, match="contexts without a value"):
        kv.put_many({"a": b"1"}, contexts={"k" * 1025: None})


def test_values_go_through_the_codec_of_the_bucket(owner: Any, bucket_name: str) -> None:
    class Text:
        def encode(self, value: str) -> bytes:
            return value.encode()

        def decode(self, data: bytes) -> str:
            return data.decode()

    kv = owner.bucket(bucket_name, codec=Text(), resolver=lambda siblings: "+".join(sorted(sibling.value for sibling in siblings)))
    kv.put_many({"a": "1", "b": "2"})
    kv.put_many({"a": "3"})
    assert [result.value for result in kv.get_many(["a", "b"]).values()] == ["1+3", "2"]
    assert {result.key: result.value for result in kv.scan()} == {b"a": "1+3", b"b": "2"}


def test_keys_of_another_type_are_no_keys(kv: Any) -> None:
    with pytest.raises(TypeError):
        kv.put_many({5: b"v"})
