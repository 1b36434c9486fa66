"""HELLO: what is refused at the door, and that nobody passes as a node of the cluster without its secret."""

from __future__ import annotations

import pytest

from dynamo.errors import ConfigError, DynamoError, ProtocolError, Unavailable
from dynamo.model import messages as m
from dynamo.wire.hello import MAGIC, Hello, check_cluster, check_hello, check_reply, client_hello, message_of, sign

SECRET = bytes(range(32))
PEER = Hello(cluster_id=b"c" * 16, partitions=256, tree_shape=1, role=m.ROLE_PEER, node_id=b"n" * 16, incarnation=4, boot_nonce=b"b" * 16, address="h:1")


def test_round_trip():
    signed = sign(PEER, SECRET)
    assert check_hello(message_of(signed)) == signed
    assert check_reply(message_of(signed, (7, 9))) == (signed, 7, 9)
    assert check_hello(client_hello(b"c" * 16)).cluster_id == b"c" * 16


def test_the_magic_is_no_text():
    assert any(byte > 127 for byte in MAGIC) and b"\r\n" in MAGIC


@pytest.mark.parametrize(
    "change",
    [
        {"protocol_min": 2, "protocol_max": 3},
        {"protocol_min": 1, "protocol_max": 0},
        {"format_min": 2, "format_max": 2},
        {"role": 3},
        {"cluster_id": b""},
        {"cluster_id": b"short"},
        {"node_id": b""},
        {"boot_nonce": b""},
        {"boot_nonce": b"b" * 17},
        {"auth": b"a" * 65},
        {"address": "h" * 301},
        {"incarnation": -1},
        {"partitions": None},
    ],
    ids=str,
)
def test_greetings_that_no_node_sends_are_protocol_errors(change):
    with pytest.raises(ProtocolError):
        check_hello(message_of(PEER._replace(**change)))


def test_a_later_version_that_still_speaks_this_one_is_welcome():
    later = PEER._replace(protocol_max=7, format_max=3, capabilities=255)
    assert check_hello((*message_of(later), b"appended")) == later


def test_other_magic_and_other_first_messages_are_refused():
    with pytest.raises(ProtocolError, match="magic"):
        check_hello((m.HELLO, 0, b"\x8adynamo\n", *PEER))
    with pytest.raises(ProtocolError, match="magic"):
        check_hello((m.HELLO, 0, "magic"))
    with pytest.raises(ProtocolError):
        check_hello((m.HELLO, 0))
    with pytest.raises(ProtocolError, match="first message"):
        check_hello((m.GET, 1, b"default", b"k", 0, 0, 1))
    with pytest.raises(ProtocolError, match="type 10"):
        check_reply((m.GET, 1, b"default", b"k", 0, 0, 1))


def test_a_refusal_arrives_as_its_error():
    with pytest.raises(Unavailable) as caught:
        check_reply((m.ERROR, 0, Unavailable.code, "no", False, 2, 1))
    assert (caught.value.required, caught.value.received) == (2, 1)
    with pytest.raises(DynamoError):
        check_reply((m.ERROR, 0, 12345, "of a later version", False, 0, 0))


@pytest.mark.parametrize("field", ["node_id", "incarnation", "boot_nonce", "role"])
def test_a_proof_covers_what_it_stands_for(field):
    signed = sign(PEER, SECRET)
    check_cluster(signed, PEER, SECRET)
    other = {"node_id": b"m" * 16, "incarnation": 5, "boot_nonce": b"d" * 16, "role": m.ROLE_JOIN}[field]
    with pytest.raises(ConfigError, match="secret"):
        check_cluster(signed._replace(**{field: other}), PEER, SECRET)


def test_no_proof_another_secret_or_the_proof_of_another_exchange_fails():
    for auth in (b"", b"x" * 16):
        with pytest.raises(ConfigError, match="secret"):
            check_cluster(PEER._replace(auth=auth), PEER, SECRET)
    with pytest.raises(ConfigError, match="secret"):
        check_cluster(sign(PEER, b"other" * 6 + b"!!"), PEER, SECRET)
    reply = sign(PEER, SECRET, b"1" * 16)
    check_cluster(reply, PEER, SECRET, b"1" * 16)
    for nonce in (b"2" * 16, b""):
        with pytest.raises(ConfigError, match="secret"):
            check_cluster(reply, PEER, SECRET, nonce)


def test_another_cluster_or_another_shape_of_it_is_named():
    for change, word in (({"cluster_id": b"d" * 16}, "cluster"), ({"partitions": 128}, "partitions"), ({"tree_shape": 2}, "tree shape")):
        with pytest.raises(ConfigError, match=word):
            check_cluster(sign(PEER._replace(**change), SECRET), PEER, SECRET)
