"""A `set` at an owner that is recovering: first it reads what it would replace, and it is accepted all the same where that read gets no answer."""

from __future__ import annotations

import pytest

from dynamo.model import messages as m
from dynamo.model.messages import Message

from .rig import Rig


class Recovering(Rig):
    """The first owner of `k` needs the second one."""

    def __init__(self) -> None:
        super().__init__(4, suspect_after_s=2.0)
        self.pass_time(5)  # until all know all
        self.first, self.second, self.third = self.owners(b"k")
        core = self.nodes[self.first].replica.core
        self.place = 3, core.locate(b"default", b"k")[0]
        self.need(self.first, self.second)

    def need(self, node_id: bytes, needed: bytes) -> None:
        core = self.nodes[node_id].replica.core
        core.standings.needs[self.place] = ((1, (needed,)),)
        core.liveness.version += 1  # routes are worked out anew

    def set(self, time_ms: int, wait_s: float) -> Message:
        return self.ask(self.first, (m.PUT, 0, b"default", b"k", b"new", None, m.MODE_SET, 1, 0, time_ms, bytes(16)), wait_s)


def test_what_those_that_it_needs_need_themselves_is_replaced_too() -> None:
    rig = Recovering()
    rig.put(rig.third, b"k", b"old")
    row_key = rig.row_key(b"k")
    (fourth,) = set(rig.ids) - set(rig.owners(b"k"))  # owned it before, and alone has it still
    rig.nodes[fourth].objects[row_key] = rig.nodes[rig.third].objects[row_key]
    for node_id in rig.owners(b"k"):
        del rig.nodes[node_id].objects[row_key]
    rig.need(rig.second, fourth)
    assert rig.set(5000, 0.0)[0] == m.PUT_REPLY
    rig.pass_time(30)
    assert rig.values(rig.get(rig.third, b"k")) == [b"new"]


@pytest.mark.parametrize("time_ms", [400, 1000, 5000])
def test_a_set_is_accepted_in_its_time_where_all_others_are_silent(time_ms: int) -> None:
    rig = Recovering()
    for node in rig.others(rig.first):
        node.up = False  # and nobody has noticed
    reply = rig.set(time_ms, time_ms / 1000.0 - 0.1)
    assert reply[0] == m.PUT_REPLY, reply
