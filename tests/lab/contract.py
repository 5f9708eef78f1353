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
        shown = host.run(
            f"cd /root/xendpy; XENDPY_LAB_GUEST=/root/contract.xl PYTHONPATH={LIBRARY}"
            " /usr/lib/xendpy/bin/python -m pytest -v -m lab -p no:cacheprovider"
            " tests/lab/test_contract.py",
            timeout_s=7200,
        )
        session.remark = matching(r"\d+ passed", shown, "pytest's last line")[0]
        host.run("rm /root/contract.xl; xl list")
