"""Context: its two encodings, what equality means, and that a token altered on its way is noticed."""

from __future__ import annotations

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo.api import Context, Dot
from dynamo.api.context import token_bytes
from dynamo.errors import InvalidContext


@given(st.binary(min_size=1, max_size=80))
def test_both_encodings_come_back(token: bytes) -> None:
    context = Context(token)
    assert Context.parse(str(context)) == Context.parse(bytes(context)) == context
    assert "=" not in str(context)
    assert bytes(context) == token


@given(st.binary(min_size=1, max_size=40), st.data())
def test_no_altered_text_passes_as_another_token(token: bytes, data: st.DataObject) -> None:
    text = str(Context(token))
    at = data.draw(st.integers(0, len(text)))
    other = text[:at] + data.draw(st.sampled_from("=+/ \n%é")) + text[at:]
    with pytest.raises(InvalidContext):
        Context.parse(other)


@pytest.mark.parametrize("text", ["A", "AB=", "AB", "A+==", "AAAA\n"])
def test_text_that_is_no_canonical_base64_is_refused(text: str) -> None:
    # "AB" decodes to one byte with stray bits set: only "AA" stands for that byte.
    with pytest.raises(InvalidContext):
        Context.parse(text)


@pytest.mark.parametrize("nothing", ["", b"", bytearray(), Context(b"")])
def test_an_empty_context_is_none(nothing: Context | str | bytes) -> None:
    # A shell variable that was never set must not turn "replace what I read" into "add a sibling".
    with pytest.raises(InvalidContext, match="empty"):
        token_bytes(nothing)
    if not isinstance(nothing, Context):
        with pytest.raises(InvalidContext, match="empty"):
            Context.parse(nothing)


def test_equality_and_hash_are_those_of_the_token_alone() -> None:
    of_put = Context(b"t", dot=Dot(1, 2), unseen_siblings=3)
    of_get = Context(b"t")
    assert of_put == of_get and hash(of_put) == hash(of_get) and of_put.dot == (1, 2) and of_get.dot is None
    assert of_put != Context(b"u") and of_put != b"t"


def test_a_context_cannot_be_changed() -> None:
    context = Context(b"t")
    for change in (lambda: setattr(context, "token", b"u"), lambda: setattr(context, "new", 1), lambda: delattr(context, "dot")):
        with pytest.raises(AttributeError):
            change()
    assert context == Context(b"t")


def test_a_context_survives_copy_and_pickle_whole() -> None:
    context = Context(b"t", dot=Dot(1, 2), unseen_siblings=3)
    for other in (copy.deepcopy(context), pickle.loads(pickle.dumps(context))):
        assert (other, other.dot, other.unseen_siblings) == (context, context.dot, 3)


def test_what_verbs_take_as_a_context() -> None:
    context = Context(b"token")
    assert token_bytes(None) is None
    assert token_bytes(context) == token_bytes(str(context)) == token_bytes(bytes(context)) == b"token"
    with pytest.raises(TypeError):
        token_bytes(5)  # type: ignore[arg-type]


def test_a_dot_prints_its_actor_in_sixteen_digits() -> None:
    assert str(Dot(0xF3, 17)) == "00000000000000f3:17"
