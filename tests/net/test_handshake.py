"""Each side of a HELLO judges for itself: neither relies on the other to refuse."""

from __future__ import annotations

import pytest

from dynamo.errors import ConfigError, ProtocolError, Unavailable
from dynamo.model import messages as m
from dynamo.net.handshake import Handshake, NodeIdTaken
from dynamo.wire.hello import Hello, client_hello, message_of, sign

SECRET = bytes(range(32))
MINE = Hello(cluster_id=b"c" * 16, partitions=256, tree_shape=1, role=m.ROLE_PEER, node_id=b"a" * 16, incarnation=2, boot_nonce=b"1" * 16)
OTHER = MINE._replace(node_id=b"b" * 16, boot_nonce=b"2" * 16)


def handshake(mine=MINE, secret=SECRET, live=None):
    return Handshake(mine, secret, lambda node: (7, 9) if node == OTHER.node_id else (0, 0), lambda node: live)


def hello(secret=SECRET, **changes):
    return message_of(sign(OTHER._replace(**changes), secret))


def reply(secret=SECRET, nonce=MINE.boot_nonce, **changes):
    return message_of(sign(OTHER._replace(**changes), secret, nonce), (5, 6))


def test_two_nodes_of_one_cluster_accept_each_other():
    here, there = handshake(), handshake(OTHER)
    accepted = there.accept(here.hello())
    assert (accepted.role, accepted.node_id, accepted.nonce) == (m.ROLE_PEER, MINE.node_id, MINE.boot_nonce)
    assert here.accept_reply(accepted.reply, OTHER.node_id).node_id == OTHER.node_id
    assert here.accept(there.hello()).reply[-2:] == (7, 9)
    greeted = here.accept_reply(reply(), OTHER.node_id)
    assert (greeted.known_actor, greeted.known_lease_end) == (5, 6)


@pytest.mark.parametrize(
    "bad",
    [
        {"secret": b"x" * 32}, {"cluster_id": b"d" * 16}, {"partitions": 128}, {"tree_shape": 2}, {"node_id": MINE.node_id},
    ],
    ids=str,
)  # fmt: skip
def test_both_sides_refuse_the_wrong_node(bad):
    with pytest.raises(ConfigError):
        handshake().accept(hello(**bad))
    with pytest.raises(ConfigError):
        handshake().accept_reply(reply(**bad), bad.get("node_id", OTHER.node_id))


def test_a_reply_must_be_to_this_hello_from_a_node_as_a_peer():
    for wrong in (reply(nonce=b"3" * 16), reply(nonce=b"")):
        with pytest.raises(ConfigError):
            handshake().accept_reply(wrong, OTHER.node_id)
    with pytest.raises(ProtocolError):
        handshake().accept_reply(reply(role=m.ROLE_CLIENT), OTHER.node_id)
    with pytest.raises(Unavailable):
        handshake().accept_reply(m.error_message(0, Unavailable.code, "busy", False), OTHER.node_id)


def test_whoever_answers_is_taken_for_who_it_is():
    assert handshake().accept_reply(reply(node_id=b"z" * 16), OTHER.node_id).node_id == b"z" * 16
    assert handshake().accept_reply(reply(), b"").node_id == OTHER.node_id


def test_a_node_that_dials_itself_has_an_old_address_and_no_double():
    for meet in (lambda h: h.accept(h.hello()), lambda h: h.accept_reply(reply(node_id=MINE.node_id, boot_nonce=MINE.boot_nonce), OTHER.node_id)):
        with pytest.raises(ConfigError, match="out of date") as raised:
            meet(handshake())
        assert not isinstance(raised.value, NodeIdTaken)


def test_only_the_node_whose_own_id_another_process_has_is_told_that_it_is_taken():
    for accept in (lambda: handshake().accept(hello(node_id=MINE.node_id)), lambda: handshake().accept_reply(reply(node_id=MINE.node_id), OTHER.node_id),
                   lambda: handshake(live=b"9" * 16).accept(hello())):  # fmt: skip
        with pytest.raises(NodeIdTaken) as raised:
            accept()
        told = m.error_message(0, raised.value.code, str(raised.value), False)
        with pytest.raises(NodeIdTaken):
            handshake().accept_reply(told, OTHER.node_id)
    with pytest.raises(ConfigError) as other:  # two processes of another node are not this one's fault
        handshake(live=b"9" * 16).accept_reply(reply(), OTHER.node_id)
    assert not isinstance(other.value, NodeIdTaken)


def test_another_live_process_with_the_node_id_is_refused_and_the_same_one_is_not():
    for live in (None, OTHER.boot_nonce):
        assert handshake(live=live).accept(hello()).role == m.ROLE_PEER
        assert handshake(live=live).accept_reply(reply(), OTHER.node_id)
    with pytest.raises(ConfigError, match="another live process"):
        handshake(live=b"9" * 16).accept(hello())
    with pytest.raises(ConfigError, match="another live process"):
        handshake(live=b"9" * 16).accept_reply(reply(), OTHER.node_id)


def test_clients_and_joiners_need_no_proof_but_the_right_cluster():
    joiner = Hello(role=m.ROLE_JOIN, node_id=OTHER.node_id)
    for message, role in ((client_hello(), 0), (client_hello(MINE.cluster_id), 0), (message_of(joiner), 2)):
        accepted = handshake(live=b"9" * 16).accept(message)
        assert accepted.role == role and accepted.reply[0] == m.HELLO_REPLY and accepted.reply[-2:] == (0, 0)
    for message in (client_hello(b"d" * 16), message_of(joiner._replace(cluster_id=b"d" * 16)), message_of(joiner._replace(node_id=MINE.node_id))):
        with pytest.raises(ConfigError):
            handshake().accept(message)
