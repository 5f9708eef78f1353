"""A bounded sample of the fuzzing: seeds, what was found once, and random damage to both."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS, inputs


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_taken(name: str) -> None:
    target = TARGETS[name]
    assert any(target.run(data) for data in target.seeds())


@pytest.mark.parametrize("name", TARGETS)
def test_what_was_found_once_is_harmless(name: str) -> None:
    for data in inputs(name):
        TARGETS[name].run(data)


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damage_is_refused_with_an_error_of_ours(name: str, data: st.DataObject) -> None:
    seed = data.draw(st.sampled_from(inputs(name)))
    damage = random.Random(data.draw(st.integers(0, 1 << 32)))
    broken = bytearray(seed)
    for _ in range(damage.randint(1, 8)):
        place = damage.randrange(len(broken) + 1)
        match damage.randrange(4):
            case 0:
                broken[place:place] = damage.randbytes(damage.randint(1, 8))
            case 1:
                del broken[place : place + damage.randint(1, 64)]
            case 2 if place < len(broken):
                broken[place] = damage.choice((0, 1, 0x7F, 0x80, 0xFF, damage.randrange(256)))
            case _:
                broken[place : place + 4] = damage.choice((b"\xff\xff\xff\xff", b"\0\0\0\x80"))
    TARGETS[name].run(bytes(broken))


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=25)
@given(noise=st.binary(max_size=600))
def test_noise_is_refused_with_an_error_of_ours(name: str, noise: bytes) -> None:
    TARGETS[name].run(noise)
