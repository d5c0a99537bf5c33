"""What is left to do, at the pace that this machine has shown, in the time that there is."""

import json

import pytest

from launch import agenda
from launch.agenda import Agenda, Part

PARTS = {"make": Part(100), "learn": Part(10, 1, 200), "more": Part(10, 2, 100), "ask": Part(80)}


class Clock:
    """Time as it is told to pass."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(agenda, "time", made)
    return made


def run(clock, limit, kept, pace, parts=PARTS):
    """Steps of every part where everything takes `pace` times as long as planned."""
    plan, steps = Agenda(parts, limit, kept), {}
    for name, part in parts.items():
        with plan.part(name, name.title()) as steps[name]:
            clock.now += pace * (part.seconds + part.step_seconds * steps[name])
    return steps


def test_a_machine_as_fast_as_planned_does_it_all(clock, tmp_path, capsys):
    assert run(clock, 700, tmp_path / "steps.json", 1) == {
        "make": 0, "learn": 200, "more": 100, "ask": 0,
    }  # fmt: skip
    told = capsys.readouterr().out
    assert "[1/4] Make   (about 10 min left)" in told
    assert "[2/4] Learn   (about 8 min left)" in told
    assert "[4/4] Ask   (about 1 min left)" in told and "--minutes" not in told


def test_a_slow_one_takes_fewer_steps_and_ends_in_time(clock, tmp_path, capsys):
    began = clock.now
    steps = run(clock, 700, tmp_path / "steps.json", 2)
    # (0.95 * 700 - 2 * 200) / 2 seconds of the 400 that are wanted
    assert steps == {"make": 0, "learn": 66, "more": 33, "ask": 0}
    assert clock.now - began <= 0.95 * 700
    told = capsys.readouterr().out
    assert "steps     66 of 200, to be done in 11.6667 minutes here; more with --minutes" in told
    assert "[2/4] Learn   (about 8 min left)" in told


def test_one_that_slows_down_takes_fewer_of_what_is_left(clock, tmp_path):
    plan = Agenda(PARTS, 700, tmp_path / "steps.json")
    with plan.part("make", "Make"):
        clock.now += 100
    with plan.part("learn", "Learn") as learned:
        clock.now += 420
    with plan.part("more", "More") as more:
        pass
    assert learned == 200 and 10 <= more < 100


def test_one_that_is_far_too_slow_takes_a_tenth(clock, tmp_path):
    assert run(clock, 700, tmp_path / "steps.json", 10) == {
        "make": 0, "learn": 20, "more": 10, "ask": 0,
    }  # fmt: skip


def test_what_was_begun_goes_on_with_its_steps(clock, tmp_path):
    kept = tmp_path / "run" / "steps.json"
    steps = run(clock, 700, kept, 2)
    assert json.loads(kept.read_text()) == {"learn": 66, "more": 33}
    again = run(clock, 10_000, kept, 0.01)  # all there, found in no time
    assert again == steps
    kept.write_text('{"learn": 66}')
    assert run(clock, 10_000, kept, 0.01)["more"] == 100
