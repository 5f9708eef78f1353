"""A configuration that another host sent is held against the rules whenever it is used."""

from pathlib import Path

import pytest

from tests.guests import guest
from tests.hypervisor.test_xl import restored
from tests.peers.fake_xl import FakeXl
from tests.peers.xl_driver import driver
from xendpy.control.managed import ManagedDomains
from xendpy.errors import DomainError
from xendpy.guest.domain import DomainConfig
from xendpy.guest.origin import KEY, as_received, is_received
from xendpy.migration.home import home_of, settle, with_home


class ReadingXl(FakeXl):
    """An xl that keeps the text of the last guest that it was to create."""

    def do_create(self, paused: str, path: str) -> None:
        self.text = Path(path).read_text()
        super().do_create(paused, path)


@pytest.fixture
def xl():
    return ReadingXl()


def claim(**values: str) -> DomainConfig:
    """What a peer says of a guest that comes to stay."""
    raw = guest().encode().decode()
    for was, said in {
        "/boot/vmlinuz-2.6.18-xen": values.get("kernel", "/boot/k"),
        "(bootloader '')": f"(bootloader '{values.get('bootloader', '')}')",
        "(vif ": f"(vif (script {values.get('script', '/etc/xen/scripts/vif-bridge')}) ",
        "(shadow_memory 0)": values.get("extra", ""),
    }.items():
        assert was in raw
        raw = raw.replace(was, said)
    return with_home(DomainConfig.parse(raw.encode()), moves=True)


def kept(tmp_path: Path, config: DomainConfig) -> DomainConfig:
    """Return what a later daemon knows of a guest that came to stay and was renamed then."""
    managed = ManagedDomains(tmp_path / "domains")
    settle(home_of(config), managed.put)
    (known,) = managed.all()
    managed.put(known.renamed("web02").with_values(on_xend_start="start"))
    again = ManagedDomains(tmp_path / "domains")
    again.load()
    return again.all()[0]


def test_a_claimed_script_is_never_run_by_its_path(hypervisor, xl, tmp_path):
    config = claim(script="/srv/images/web/vif-bridge")
    with pytest.raises(DomainError, match="vif script /tmp/x is not allowed here"):
        hypervisor.create(kept(tmp_path, claim(script="/tmp/x")))
    hypervisor.create(kept(tmp_path, config))
    assert "script=vif-bridge" in xl.text and "/srv" not in xl.text


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (claim(kernel="/etc/shadow"), "kernel /etc/shadow is not below /boot"),
        (claim(bootloader="/tmp/x"), "boot loader /tmp/x is not run here"),
        (claim(extra=f"({KEY} 0)", kernel="/root/k"), "kernel /root/k is not below /boot"),
        (claim(extra="(device (vbd (uname file:/etc/shadow) (dev xvda) (mode w)))"),
         "disk /etc/shadow is not below /boot"),
    ],
)  # fmt: skip
def test_a_kept_claim_is_refused_at_every_start(hypervisor, tmp_path, config, text):
    with pytest.raises(DomainError, match=text):
        hypervisor.create(kept(tmp_path, config))
    assert hypervisor.domains() == []


def test_the_operators_own_guest_is_not_confined(hypervisor, tmp_path):
    hypervisor.create(claim(kernel="/root/k"))
    assert [item.received for item in hypervisor.domains()] == [False]


def test_a_guest_that_came_is_known_as_received_also_after_a_restart(hypervisor, tmp_path, xl):
    restored(hypervisor)
    hypervisor.close()
    again = driver(tmp_path, xl)
    (summary,) = again.domains()
    again.close()
    assert summary.received
    assert summary.config.raw == guest().raw  # what goes on to others stays as it came


def test_a_claim_that_was_started_here_is_still_one(hypervisor, tmp_path):
    hypervisor.create(kept(tmp_path, claim()))
    assert [item.received for item in hypervisor.domains()] == [True]


def test_the_mark_is_put_on_once():
    once = as_received(guest())
    assert is_received(once) and not is_received(guest())
    assert as_received(once) is once
