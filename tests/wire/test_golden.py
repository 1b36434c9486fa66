"""Frames other implementations were written against. A failure here is a change of the protocol, never a reason to write the file anew."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from golden import FRAMES, SECRET

from dynamo.model import messages as m
from dynamo.wire.frames import FrameDecoder, encode
from dynamo.wire.hello import Hello, check_cluster, check_hello, check_reply
from dynamo.wire.messages import SHAPES

SPECIFICATION = Path(__file__).parent.parent.parent / "docs" / "wire.md"


@pytest.mark.parametrize("name", FRAMES)
def test_frame(name):
    message, frame = FRAMES[name]
    assert FrameDecoder().feed(frame) == [message]
    assert encode(message) == frame
    SHAPES[message[0]].check(message)


def test_every_type_has_a_frame():
    assert {message[0] for message, _ in FRAMES.values()} == set(SHAPES)


def test_greetings_are_accepted_and_their_proofs_hold():
    hello = check_hello(FRAMES["HELLO"][0])
    reply, known_actor, known_lease_end = check_reply(FRAMES["HELLO_REPLY"][0])
    assert (known_actor, known_lease_end) == (0xF1F2F3F4F5F6F7F8, 1 << 20)
    check_cluster(hello, reply, SECRET)
    check_cluster(reply, hello, SECRET, hello.boot_nonce)
    assert check_hello(FRAMES["HELLO (client)"][0]) == Hello()
    assert check_hello(FRAMES["HELLO (joiner)"][0]).role == m.ROLE_JOIN


def test_the_specification_lists_every_field_of_every_message_in_order():
    text = SPECIFICATION.read_text()
    for kind, shape in SHAPES.items():
        section = re.search(rf"^#+ {shape.name} \({kind}\)\n(.*?)(?=^#)", text + "\n#", re.S | re.M)
        assert section is not None, f"docs/wire.md has no section on {shape.name} ({kind})"
        fields = re.findall(r"^\| `(\w+)` \|", section[1], re.M)
        expected = [name for name, _ in shape.fields]
        if kind == m.HELLO_REPLY:
            expected = expected[-2:]  # the rest is HELLO's table
        assert fields == expected, shape.name
