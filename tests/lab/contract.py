"""The driver's contract on real xl: tests/lab/test_contract.py, in domain 0."""

from __future__ import annotations

from tests.lab.oldwire import create
from tests.lab.project import LIBRARY
from tests.lab.session import Session, matching


def walk(session: Session) -> None:
    """Run the contract tests on one host, with a guest that its xl has saved."""
    host = session.eight
    with session.step("the driver's contract on real xl"):
        create(host, "web01")
        host.run("xl save web01 /root/contract.xl 2>&1 | grep -v progress; xl list")
        # The driver keeps to its contract towards old senders, so the guest comes as they send.
        host.run("xm convert --to xend contract.xl contract.sav; rm contract.xl")
        shown = host.run(
            f"cd /root/xendpy; XENDPY_LAB_GUEST=/root/contract.sav PYTHONPATH={LIBRARY}"
            " /usr/lib/xendpy/bin/python -m pytest -v -m lab -p no:cacheprovider"
            " tests/lab/test_contract.py",
            timeout_s=7200,
        )
        session.remark = matching(r"\d+ passed", shown, "pytest's last line")[0]
        host.run("rm contract.sav; xl list")
