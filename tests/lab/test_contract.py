"""What every driver keeps, kept by xl on a real Xen: the lab runs this in a domain 0.

XENDPY_LAB_GUEST names a save file of xend's with a PV guest that has no devices. No other guest
may be on the host.
"""

import os
from contextlib import suppress
from pathlib import Path

import pytest

from tests.guests import UUID
from tests.hypervisor.contract import CLASHES, GuestContract
from xendpy.errors import StreamTruncated, XendError
from xendpy.guest.domain import DomainConfig
from xendpy.hypervisor.xl import XlHypervisor
from xendpy.hypervisor.xlrules import GuestRules
from xendpy.migration.receive import FileSource, NoGuest, drive
from xendpy.migration.saved_file import saved_config
from xendpy.paths import Paths
from xendpy.stream.xend import decode_body, read_envelope

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1200)]
BEGINNING = 8 << 20


@pytest.fixture(scope="session")
def saved():
    return Path(os.environ["XENDPY_LAB_GUEST"])


@pytest.fixture
def hypervisor(tmp_path):
    opened = XlHypervisor(Paths(tmp_path), rules=GuestRules(confined=False))
    yield opened
    for summary in opened.domains():
        with suppress(XendError):
            opened.destroy(opened.find(str(summary.domid)))
    opened.close()


class TestContract(GuestContract):
    @pytest.fixture(autouse=True)
    def files(self, saved, tmp_path):
        self.saved = saved
        self.part = tmp_path / "part.sav"
        with open(saved, "rb") as file:
            self.part.write_bytes(file.read(BEGINNING))

    def config(self, name="web01", uuid=UUID):
        config = saved_config(self.saved)
        mine = [["name", name], ["uuid", uuid]]
        rest = [item for item in config.tree[1:] if item[0] not in ("name", "uuid")]
        return DomainConfig.from_sxp(["domain", *mine, *rest])

    def send(self, session, pfns=None):
        self._drive(self.saved, session)

    def begin(self, session):
        with suppress(StreamTruncated):
            self._drive(self.part, session)

    def _drive(self, path, session):
        with open(path, "rb") as file:
            source = FileSource(file.fileno())
            drive(read_envelope(), source, NoGuest())
            drive(decode_body(saved_config(self.saved).guest_type), source, session)

    @pytest.mark.parametrize("first", ["live"])
    @pytest.mark.parametrize(("differs", "text"), [row[1:] for row in CLASHES[:2]])
    def test_a_clash_is_refused_before_a_page(self, hypervisor, differs, text, first):
        super().test_a_clash_is_refused_before_a_page(hypervisor, differs, text, first)
