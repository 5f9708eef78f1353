"""`xm migrate --ssl` between daemons that are processes, each verifying the other."""

from __future__ import annotations

import shutil
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.certificates import Authority
from tests.peers.hosts import NAMES, Host, host_port, remove_guests, until
from tests.peers.xend_receiver import XendReceiver

pytestmark = pytest.mark.timeout(480)

LINES = """\
(xend-relocation-ssl-server yes)
(xend-relocation-ssl-port {tls_port})
(xend-relocation-server-ssl-key-file {cert}.key)
(xend-relocation-server-ssl-cert-file {cert}.pem)
(xendpy-relocation-tls-ca ca.pem)
{more}
"""


@contextmanager
def secured(
    directory: Path, *, more: str = "", there: str = "et-virt08"
) -> Iterator[tuple[Host, Host]]:
    """Run both hosts with certificates of one CA; the second shows that of `there`."""
    authority = Authority(directory / "pki")
    for name in {*NAMES, there}:
        authority.issue(name)
    port, tls_port = host_port(), host_port()
    hosts = [Host(name, directory / name, address, port) for name, address in NAMES.items()]
    peers = "".join(f"(xendpy-peer {name} (address {ip}))\n" for name, ip in NAMES.items())
    try:
        for host, cert in zip(hosts, ("et-virt07", there), strict=True):
            shutil.copytree(authority.pki.directory, host.root / "etc/xen")
            host.configure(peers, LINES.format(tls_port=tls_port, cert=cert, more=more))
            host.start()
        yield hosts[0], hosts[1]
    finally:
        for host in hosts:
            remove_guests(host)
            host.stop()


def test_a_guest_goes_there_and_back_over_tls_only(tmp_path: Path) -> None:
    with secured(tmp_path, more="(xendpy-relocation-require-tls yes)") as (here, there):
        here.create()
        here.xm("migrate", "--live", "--ssl", "testvm1", "et-virt08")
        until(lambda: there.guests() == ["testvm1"], "the guest is there")
        assert here.guests() == []
        # The way back needs no word: the plain port is closed on both.
        there.xm("migrate", "--live", "--streams=3", "testvm1", "et-virt07")
        until(lambda: here.guests() == ["testvm1"], "the guest is back")
        assert all(entry["tls"] for entry in here.journal() if entry["direction"] == "out")
        for host in (here, there):
            log = host.log()
            assert "tls=TLSv1.3" in log
            assert "over TLS" in log and f"listening on {host.address}:{host.port}\n" not in log
            assert "event=relocation direction=in" in log and "result=done" in log


def test_a_host_with_another_s_certificate_gets_no_guest(tmp_path: Path) -> None:
    with secured(tmp_path, there="impostor") as (here, there):
        here.create()
        done = here.xm("migrate", "--live", "--ssl", "testvm1", "et-virt08", check=False)
        assert done.returncode == 1
        assert "the certificate is for impostor, not for et-virt08 or 127.0.0.2" in done.stderr
        assert (here.guests(), there.guests()) == (["testvm1"], [])


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_xend_gets_no_guest_over_tls(tmp_path: Path, version: ssl.TLSVersion) -> None:
    with secured(tmp_path) as (here, _):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = context.maximum_version = version
        # Vouched for by the same CA: nothing but its being a xend speaks against it.
        context.load_cert_chain(
            *(here.root / f"etc/xen/et-virt08.{end}" for end in ("pem", "key"))
        )
        here.create()
        with XendReceiver("3.4", address=NAMES["et-virt08"], tls=context) as old:
            command = ("migrate", "--ssl", "-p", str(old.port), "testvm1", "et-virt08")
            for more in ((), ("--live",), ("--dry-run",)):
                done = here.xm(*command, *more, check=False)
                assert done.returncode == 1
                said = done.stdout + done.stderr
                assert "et-virt08 is no xendpy host" in said, said
                assert "cannot say whether the guest arrived, so nothing is sent" in said
            assert here.guests() == ["testvm1"]
            assert here.in_doubt() == []
        assert old.received == []
