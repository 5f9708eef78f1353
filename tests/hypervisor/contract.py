"""What every driver keeps, and what those with page access do, run through any of them.

A subclass provides the fixture `hypervisor`.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.guests import (
    OTHER_UUID,
    UUID,
    batch,
    closing,
    contents,
    guest,
    opening,
    plain,
    send_all,
    send_guest,
    send_pages,
    span,
    u64,
)
from xendpy.errors import DomainExists, DomainNotFound, XendError
from xendpy.guest.domain import DomainState
from xendpy.guest.pages import PageType
from xendpy.stream.records import End

# What clashes: how the second guest differs from the first, and what is said of it.
CLASHES = [
    ("uuid", {"name": "other"}, "Domain 'other' already exists with ID '{}'"),
    ("name", {"uuid": OTHER_UUID}, "VM name 'web01' already exists as domain {}"),
    ("both", {}, "Domain 'web01' already exists with ID '{}'"),
]


def say_all(source: Any) -> None:
    """Take every record of a source, up to and including the end."""
    for _ in source.closing() if hasattr(source, "closing") else source.records():
        pass


class GuestContract:
    """Tests that hold for any driver.

    Where guests really run, made-up ones will not do: a subclass then brings its own.
    """

    def config(self, name: str = "web01", uuid: str = UUID) -> Any:
        """Return a guest's configuration."""
        return guest(name, uuid)

    def begin(self, session: Any) -> None:
        """Send a guest's beginning, with a few pages."""
        send_all(session, opening())
        send_pages(session, span(0, 8), 1)

    def send(self, session: Any, pfns: Any = None) -> None:
        """Send a whole guest."""
        send_guest(session, span(0, 32) if pfns is None else pfns)

    def restore(self, hypervisor: Any, config: Any = None, pfns: Any = None) -> Any:
        with hypervisor.restore(config or self.config()) as session:
            self.send(session, pfns)
            return session.complete()

    def test_it_says_who_it_is_and_what_it_can(self, hypervisor):
        capabilities = hypervisor.capabilities()
        assert hypervisor.name
        assert capabilities.guest_types
        assert 0 < capabilities.free_memory_bytes <= capabilities.total_memory_bytes

    def test_a_restored_guest_is_listed_paused(self, hypervisor):
        domain = self.restore(hypervisor)
        (summary,) = hypervisor.domains()
        assert (summary.domid, summary.uuid, summary.name) == (
            domain.domid,
            domain.uuid,
            domain.name,
        )
        assert summary.state is hypervisor.state(domain) is DomainState.PAUSED
        assert summary.config == self.config()
        assert domain.domid > 0

    def test_a_guest_is_not_there_before_it_is_complete(self, hypervisor):
        with hypervisor.restore(self.config()) as session:
            self.send(session)
            assert hypervisor.domains() == []
            session.complete()
        assert len(hypervisor.domains()) == 1

    def test_a_guest_left_incomplete_is_gone_and_its_name_free(self, hypervisor):
        with pytest.raises(KeyError), hypervisor.restore(self.config()) as session:
            self.begin(session)
            raise KeyError
        assert hypervisor.domains() == []
        self.restore(hypervisor)

    def test_views_hold_the_pages_in_stream_order(self, hypervisor):
        with hypervisor.restore(self.config()) as session:
            for record in opening():
                session.apply(record)
            views = session.populate(_batch_of(7, 8, 2, 9))
            assert sum(view.nbytes for view in views) == 4 * 4096

    def test_pages_without_data_get_no_view(self, hypervisor):
        with hypervisor.restore(self.config()) as session:
            for record in opening():
                session.apply(record)
            assert list(session.populate(_batch_of(7, 8, type=PageType.XALLOC))) == []

    @pytest.mark.parametrize(
        ("differs", "text"), [row[1:] for row in CLASHES], ids=[row[0] for row in CLASHES]
    )
    @pytest.mark.parametrize("first", ["live", "incoming"])
    def test_a_clash_is_refused_before_a_page(self, hypervisor, differs, text, first):
        config = self.config(**differs)
        if first == "live":
            domain = self.restore(hypervisor)
            self._refused(hypervisor, config, text.format(domain.domid))
        else:
            with hypervisor.restore(self.config()) as session:
                self._refused(hypervisor, config, text.format(1))
                self.send(session)
                session.complete()
        assert len(hypervisor.domains()) == 1

    def _refused(self, hypervisor, config, text):
        with pytest.raises(DomainExists) as caught, hypervisor.restore(config):
            raise AssertionError("let in")
        assert str(caught.value) == text

    def test_guests_are_found_by_name_domid_and_uuid(self, hypervisor):
        domain = self.restore(hypervisor)
        for key in (domain.name, str(domain.domid), domain.uuid, domain.uuid.upper()):
            assert hypervisor.find(key) == domain
        with pytest.raises(DomainNotFound, match="'nobody' does not exist"):
            hypervisor.find("nobody")

    def test_a_name_that_looks_like_a_domid_is_a_name(self, hypervisor):
        self.restore(hypervisor)
        other = self.restore(hypervisor, self.config("1", OTHER_UUID))
        assert hypervisor.find("1") == other

    def test_a_destroyed_guest_is_gone(self, hypervisor):
        domain = self.restore(hypervisor)
        hypervisor.destroy(domain)
        assert hypervisor.domains() == []
        with pytest.raises(DomainNotFound):
            hypervisor.state(domain)
        with pytest.raises(DomainNotFound):
            hypervisor.destroy(domain)
        assert self.restore(hypervisor).domid > domain.domid

    def test_a_relinquished_guest_is_gone(self, hypervisor):
        domain = self.restore(hypervisor)
        with hypervisor.save(domain) as source:
            say_all(source)
            source.relinquish()
        assert hypervisor.domains() == []

    def test_a_renamed_guest_answers_to_its_name(self, hypervisor):
        domain = hypervisor.rename(self.restore(hypervisor), "web02")
        assert hypervisor.find("web02") == domain
        with pytest.raises(DomainNotFound):
            hypervisor.find("web01")
        self.restore(hypervisor, self.config("web01", OTHER_UUID))
        with pytest.raises(DomainExists):
            hypervisor.rename(domain, "web01")

    def test_leaving_a_save_without_a_choice_holds_after_the_end(self, hypervisor):
        domain = self.restore(hypervisor)
        with pytest.raises(KeyError), hypervisor.save(domain) as source:
            say_all(source)
            raise KeyError
        (summary,) = hypervisor.domains()
        assert summary.note

    def test_a_save_session_ends_once(self, hypervisor):
        domain = self.restore(hypervisor)
        with hypervisor.save(domain) as source:
            source.resume()
            with pytest.raises(ValueError, match="ended"):
                source.relinquish()
        assert hypervisor.find(domain.name) == domain


class DriverContract(GuestContract):
    """Tests that hold for any driver with page access as well."""

    def test_what_went_in_comes_out(self, hypervisor):
        domain = self.restore(hypervisor, pfns=u64(0, 1, 2, 50, 700))
        with hypervisor.save(domain) as source:
            assert source.config.encode() == guest().encode()
            assert plain(source.opening()) == plain(opening())
            assert contents(source) == dict.fromkeys((0, 1, 2, 50, 700), (0, 1))
            source.suspend()
            assert plain(source.closing()) == plain([*closing(), End()])
            source.resume()
        assert hypervisor.find(domain.name) == domain

    def test_leaving_a_save_without_a_choice_resumes_before_the_end(self, hypervisor):
        domain = self.restore(hypervisor)
        with hypervisor.save(domain) as source:
            contents(source)
        (summary,) = hypervisor.domains()
        assert summary.note == ""

    def test_a_cancelled_session_fails_soon(self, hypervisor):
        with hypervisor.restore(guest()) as session:
            session.cancel()
            with pytest.raises(XendError, match="cancelled"):
                session.populate(_batch_of(1))
        domain = self.restore(hypervisor)
        with hypervisor.save(domain) as source:
            source.cancel()
            with pytest.raises(XendError, match="cancelled"):
                source.read(u64(1))


def _batch_of(*pfns: int, type: int = PageType.NOTAB) -> Any:
    return batch(u64(*pfns), type)
