from __future__ import annotations

import pytest

from tests.control.fakes import FakeHypervisor, guest_config
from xendpy.control.guests import Guests
from xendpy.control.libvirt.view import PICTURE_COSTS, PICTURE_S, View
from xendpy.guest.domain import DomainSummary


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def names(view: View) -> list[str]:
    return [guest.name for guest in await view.live()]


async def test_a_picture_is_as_old_as_it_may_be_and_no_older(
    guests: Guests, hypervisor: FakeHypervisor, clock: Clock
) -> None:
    view = View(guests, clock)
    assert await names(view) == ["Domain-0"]
    hypervisor.add(guest_config("web1"))
    assert await names(view) == ["Domain-0"]
    clock.now_s = PICTURE_S
    assert await names(view) == ["Domain-0", "web1"]


async def test_what_is_forgotten_is_looked_at_anew(
    guests: Guests, hypervisor: FakeHypervisor, clock: Clock
) -> None:
    view = View(guests, clock)
    await view.all()
    hypervisor.add(guest_config("web1"))
    view.forget()
    assert await names(view) == ["Domain-0", "web1"]


class Slow:
    """Guests that take a second to look at; `meanwhile` is called while somebody does."""

    def __init__(self, guests: Guests, clock: Clock) -> None:
        self.looks = 0
        self._guests, self._clock = guests, clock

    def meanwhile(self) -> None: ...

    async def guests(self) -> list[DomainSummary]:
        self.looks += 1
        self._clock.now_s += 1.0
        self.meanwhile()
        return await self._guests.guests()


async def test_a_picture_that_cost_much_is_kept_longer(guests: Guests, clock: Clock) -> None:
    slow = Slow(guests, clock)
    view = View(slow, clock)  # type: ignore[arg-type]  # all that a view asks for
    await view.all()
    clock.now_s += PICTURE_COSTS - 0.5
    await view.all()
    assert slow.looks == 1
    clock.now_s += 0.5
    await view.all()
    assert slow.looks == 2


async def test_what_happens_while_a_picture_is_made_makes_it_old(
    guests: Guests, clock: Clock
) -> None:
    slow = Slow(guests, clock)
    view = View(slow, clock)  # type: ignore[arg-type]  # all that a view asks for
    slow.meanwhile = view.forget  # type: ignore[method-assign]
    await view.all()
    await view.all()
    assert slow.looks == 2
