"""The shapes of messages: what `check` lets pass has the fields its reader expects, and came from a role that may send it."""

from __future__ import annotations

import pytest
from golden import BY_TYPE

from dynamo.errors import ProtocolError
from dynamo.model import messages as m
from dynamo.wire.messages import ANSWERS, REQUESTS, SHAPES, check, check_answer

NO_TYPES = ("MODE_", "PURPOSE_", "DURABILITY_", "ROLE_")
TYPES = {
    value: name
    for name, value in vars(m).items()
    if name.isupper() and isinstance(value, int) and value >= 10 and not name.startswith(NO_TYPES) and not name.endswith("_MAX")
} | {1: "HELLO", 2: "HELLO_REPLY", 3: "JOIN", 4: "JOIN_REPLY"}


def test_every_message_has_a_shape_under_its_own_name():
    assert {kind: shape.name for kind, shape in SHAPES.items()} == TYPES


def role_of(kind):
    """(check function, role) that lets this type pass."""
    for table, function in ((REQUESTS, check), (ANSWERS, check_answer)):
        for role, kinds in table.items():
            if kind in kinds:
                return function, role
    return None, None


@pytest.mark.parametrize("kind", sorted(set(TYPES) - {m.HELLO, m.HELLO_REPLY}), ids=TYPES.get)
def test_each_type_passes_on_its_role_and_no_other(kind):
    message = BY_TYPE[kind]
    _, role = role_of(kind)
    for function, table in ((check, REQUESTS), (check_answer, ANSWERS)):
        for other, kinds in table.items():
            if kind in kinds:
                function(message, other)
                function((*message, b"appended", 7), other)  # fields of a later version
            else:
                with pytest.raises(ProtocolError):
                    function(message, other)
    assert role is not None


@pytest.mark.parametrize("kind", sorted(TYPES), ids=TYPES.get)
def test_missing_fields_and_wrong_types_are_refused(kind):
    message, shape = BY_TYPE[kind], SHAPES[kind]
    shape.check(message)
    if shape.fields:
        with pytest.raises(ProtocolError, match="fields of"):
            shape.check(message[:-1])
    for i, (name, field) in enumerate(shape.fields, 2):
        for wrong in (None, True, -1, 1.5, b"", "text", (), (((),),)):
            if type(wrong) in field.types and wrong != -1:
                continue
            with pytest.raises(ProtocolError, match=name):
                shape.check((*message[:i], wrong, *message[i + 1 :]))


@pytest.mark.parametrize(
    ("kind", "field", "wrong"),
    [
        (m.GET, "r", 256),
        (m.GET, "time_ms", 1 << 32),
        (m.PUT, "mode", 2),
        (m.PUT, "operation", b"o" * 15),
        (m.PUT_MANY, "entries", ((b"k", b"v", None),)),
        (m.PUT_MANY, "entries", ((b"k", "text", None, b"o" * 16),)),
        (m.PUT_MANY, "entries", ((b"k", b"v", None, b"short"),)),
        (m.SCAN_REPLY, "entries", ((b"k", b"token", (b"v",), b"c"),)),
        (m.SCAN_REPLY, "entries", ((b"k", b"token", ()),)),
        (m.SCAN_READ_REPLY, "rows", ((b"row", b"k"),)),
        (m.GET_REPLY, "tombstones", ((1, 2),)),
        (m.GET_MANY, "keys", (b"k", "k")),
        (m.JOIN, "node_id", b"n" * 17),
        (m.REPLICATE, "durability", 4),
        (m.REPLICATE, "purpose", 4),
        (m.READ_REPLY, "standing", 3),
        (m.GET_REPLY, "ring_hash", 1 << 64),
        (m.GET_REPLY, "siblings", ((b"v", 1, 2),)),
        (m.GET_REPLY, "siblings", (b"v",)),
        (m.GET_REPLY, "siblings", ((b"v", 1, -2, 3),)),
        (m.FORWARD, "put", (m.GET, 1, b"b", b"k", 0, 0, 1)),
        (m.FORWARD, "put", (m.PUT, 1, b"b", b"k")),
        (m.FORWARD_REPLY, "reply", (m.FORWARD_REPLY, 1, ())),
        (m.GET_MANY_REPLY, "replies", ((m.GET_REPLY, 0),)),
        (m.GET_MANY_REPLY, "replies", (b"",)),
        (m.GOSSIP, "entries", ((b"short", 1, 1, 1),)),
        (m.GOSSIP_REPLY, "wanted", (b"short",)),
        (m.RECOVER_REPLY, "recovering", ((51, ((1, (b"short",)),)),)),
        (m.RECOVER_REPLY, "recovering", ((51, ((1,),)),)),
        (m.RECOVER_REPLY, "recovering", ((51, (1,)),)),
        (m.GOSSIP_PUSH, "members", ((),)),
        (m.GOSSIP_PUSH, "members", ((b"n" * 16, "n1", 1, 0, 1, "h:1", "", 1000, "asleep", 7, 9, 1),)),
    ],
)
def test_bounds_and_nested_values(kind, field, wrong):
    names = [name for name, _ in SHAPES[kind].fields]
    i = 2 + names.index(field)
    message = BY_TYPE[kind]
    with pytest.raises(ProtocolError):
        SHAPES[kind].check((*message[:i], wrong, *message[i + 1 :]))


def test_unknown_types_are_refused():
    for role in REQUESTS:
        with pytest.raises(ProtocolError, match="type 99"):
            check((99, 1), role)
    with pytest.raises(ProtocolError, match="type 99"):
        check_answer((99, 1))
