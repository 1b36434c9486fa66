"""The decisions of coming in and of finding the others again, as values: nothing here has a socket or a clock."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest

from dynamo.errors import ConfigError, ConnectionFailed, InvalidRequest
from dynamo.membership.joining import ANOTHER, DOUBLE, EXPECTED, ITSELF, Entry, Seeking, held, lost_at, who_answers
from dynamo.membership.members import Membership
from dynamo.model.cluster import Cluster
from dynamo.model.member import LEFT, NORMAL

A, B, C = (letter * 16 for letter in (b"a", b"b", b"c"))
ONE, OTHER = (Cluster(cluster_id=letter * 16, secret=bytes(32), seed=1) for letter in (b"1", b"2"))


def membership(**at):
    """Node A's view of nodes at addresses."""
    found = Membership(A)
    for name, address in at.items():
        view = Membership(name.encode() * 16)
        view.start(name, address, 1, 1, 1, status=NORMAL)
        found.merge_all(view.members.values())
    found.start("a", at.get("a", "h:1"), 1, 1, 1, status=NORMAL)
    return found


@pytest.mark.parametrize(
    ("theirs", "expected", "who"),
    [((B, b"2"), B, EXPECTED), ((B, b"2"), b"", EXPECTED), ((C, b"3"), B, ANOTHER), ((A, b"1"), B, ITSELF), ((A, b"9"), B, DOUBLE), ((A, b"9"), A, DOUBLE),
     ((A, b"1"), b"", ITSELF)],
)  # fmt: skip
def test_who_is_behind_an_address(theirs, expected, who):
    assert who_answers((A, b"1"), theirs, expected) == who


def test_an_address_is_held_by_this_node_or_by_one_that_is_connected_and_says_so():
    view = membership(a="h:1", b="h:1", c="h:2", d="h:2")
    assert held(view, B, lambda node: False) == A
    assert held(view, C, lambda node: False) == b""
    assert held(view, C, lambda node: node == b"d" * 16) == b"d" * 16
    view.administer(b"d" * 16, status=LEFT)
    assert held(view, C, lambda node: True) == b""


def test_a_newcomer_is_seen_to_follow_the_member_that_was_at_its_address():
    view = membership(a="h:1", b="h:2")
    assert [member.node_id for member in lost_at(view, C, "h:2")] == [B]
    assert lost_at(view, B, "h:2") == lost_at(view, C, "h:1") == lost_at(view, C, "h:3") == []


# --- coming in ------------------------------------------------------------------------------------------------------------------------


def entry(addresses=("h:1", "h:2")):
    return Entry(addresses, timeout_s=60.0, double_timeout_s=10.0)


def test_one_answer_lets_a_node_in_and_none_has_it_ask_again_until_the_time_is_over():
    asked = entry()
    asked.failed("h:1", ConnectionFailed("h:1: refused"))
    assert asked.verdict(59.0) is None
    with pytest.raises(ConnectionFailed, match=r"no node to join answered within 60 s \(h:1: refused\); see that .* is started without `join`"):
        asked.verdict(61.0)
    asked.accepted("h:2", ONE, ["member"])
    assert asked.verdict(0.0) == (ONE, ["member"])


def test_addresses_of_two_clusters_are_refused_whoever_answers_first():
    for order in ((ONE, OTHER), (OTHER, ONE)):
        asked = entry()
        for address, cluster in zip(asked.addresses, order, strict=True):
            asked.accepted(address, cluster, [])
        with pytest.raises(ConfigError, match="31313131-3131-3131-3131-313131313131") as raised:
            asked.verdict(0.0)
        assert "32323232-3232-3232-3232-323232323232" in str(raised.value) and "h:1" in str(raised.value) and "h:2" in str(raised.value)


def test_a_double_has_time_to_end_also_where_another_member_knows_nothing_of_it():
    asked = entry()
    asked.accepted("h:1", ONE, [])
    asked.failed("h:2", InvalidRequest("another live process has node id x"))
    assert asked.verdict(9.0) is None
    with pytest.raises(ConfigError, match="another live process"):
        asked.verdict(11.0)
    asked.accepted("h:2", ONE, [])
    assert asked.verdict(9.0) == (ONE, [])


def test_a_refusal_for_good_names_the_address():
    with pytest.raises(ConfigError, match="h:2: this is cluster"):
        entry().failed("h:2", ConfigError("this is cluster x, not y"))


# --- finding the others again ---------------------------------------------------------------------------------------------------------


def looks(seeking, view, until, connected=lambda node: False, now=0.0):
    """(time, look) of all looks up to a time."""
    found = []
    while now <= until:
        found.append((now, seeking.look(now, view, connected, lambda node: "gone astray")))
        now = seeking.next_deadline
    return found


def test_addresses_are_asked_for_ever_with_growing_pauses_while_a_member_is_missed():
    view = membership(a="h:1", b="h:2")
    found = looks(Seeking(["j:1", "j:2", "j:1"], Random(1)), view, 3600.0)
    assert all(list(look.ask) == ["j:1", "j:2"] for _, look in found)
    pauses = [later - earlier for (earlier, _), (later, _) in pairwise(found)]
    assert pauses[0] < 1.3 and max(pauses) < 38 and 95 < len(found) < 240


def test_nobody_is_asked_while_all_are_there_and_a_loss_is_noticed_soon():
    view, seeking = membership(a="h:1", b="h:2"), Seeking(["j:1"], Random(1))
    found = looks(seeking, view, 100.0, connected=lambda node: True)
    assert all(not look.ask and not look.complaint for _, look in found)
    assert seeking.look(101.0, view, lambda node: False, lambda node: "").ask == ["j:1"] and seeking.next_deadline < 102.3


def test_the_addresses_of_this_node_and_of_those_at_hand_are_not_asked():
    view = membership(a="h:1", b="h:2", c="h:3")
    seeking = Seeking(["h:1", "h:2", "h:3", "h:4"], Random(1))
    assert list(seeking.look(0.0, view, lambda node: node == B, lambda node: "").ask) == ["h:3", "h:4"]


def test_what_is_missed_is_said_once_a_minute_with_the_reason():
    view = membership(a="h:1", b="h:2")
    said = [(now, look.complaint) for now, look in looks(Seeking([], Random(1)), view, 600.0) if look.complaint]
    assert 9 <= len(said) <= 10 and 10 <= said[0][0] < 12
    assert all(
        text == f"cannot reach 1 of 2 members: b ({B.hex()}) at h:2 (gone astray); trying again until they answer (if they moved, `join` can say where)"
        for _, text in said
    )
    twins = membership(a="h:1", b="h:1")
    assert f"at h:1, where node {A.hex()} is now" in next(look.complaint for _, look in looks(Seeking([], Random(1)), twins, 60.0) if look.complaint)


def test_members_that_left_and_lone_nodes_are_not_missed():
    view = membership(a="h:1", b="h:2")
    view.administer(B, status=LEFT)
    for lone in (view, membership()):
        assert all(not look.ask and not look.complaint for _, look in looks(Seeking(["j:1"], Random(1)), lone, 300.0))
