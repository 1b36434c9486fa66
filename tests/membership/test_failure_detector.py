"""The detector suspects silence, not jitter; forgives its own pauses; and forgets nothing it needs."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from dynamo.membership.failure_detector import FailureDetector

PEER = b"p" * 16


def trained(intervals: list[float]) -> tuple[FailureDetector, float]:
    detector, now = FailureDetector(0.5), 0.0
    detector.heartbeat(PEER, now)
    for interval in intervals:
        now += interval
        detector.step(now)
        detector.heartbeat(PEER, now)
    return detector, now


def test_nothing_is_known_of_a_stranger() -> None:
    assert FailureDetector(0.5).phi(PEER, 100.0) == 0.0


def test_a_regular_peer_is_suspected_after_a_few_intervals_of_silence_and_no_sooner() -> None:
    detector, now = trained([0.5] * 50)
    assert not detector.suspects(PEER, now + 1.5)
    assert detector.suspects(PEER, now + 2.5)


def test_a_jittery_peer_gets_more_time() -> None:
    rng = random.Random(1)
    steady, a = trained([0.5] * 60)
    jittery, b = trained([rng.choice((0.1, 0.2, 2.0)) for _ in range(60)])
    assert steady.phi(PEER, a + 2.2) > jittery.phi(PEER, b + 2.2)


def test_any_message_ends_the_silence() -> None:
    detector, now = trained([0.5] * 20)
    detector.heard(PEER, now + 2.4)
    assert not detector.suspects(PEER, now + 2.6)


def test_an_outage_is_not_learned_as_an_interval() -> None:
    detector, now = trained([0.5] * 20)
    detector.heartbeat(PEER, now + 600)
    assert detector.suspects(PEER, now + 600 + 3)


def test_a_node_that_was_stopped_itself_doubts_itself_first() -> None:
    detector, now = trained([0.5] * 20)
    detector.step(now + 60)
    assert not detector.suspects(PEER, now + 60)
    for tick in range(1, 8):
        detector.step(now + 60 + tick * 0.5)
    assert detector.suspects(PEER, now + 64), "but silence after it woke up counts"


@given(st.lists(st.floats(0.01, 5), max_size=80), st.floats(0, 1e6))
def test_phi_never_fails_and_grows_with_the_silence(intervals: list[float], silence: float) -> None:
    detector, now = trained(intervals)
    assert 0 <= detector.phi(PEER, now + silence / 2) <= detector.phi(PEER, now + silence) + 1e-9
