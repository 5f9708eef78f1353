from __future__ import annotations

from pathlib import Path

import pytest

from tests.control.fakes import guest_config
from xendpy.control.domain_sxp import domain_sxp, status_of
from xendpy.control.managed import ManagedDomains, inactive
from xendpy.errors import DomainExists


def test_domains_survive_a_restart(tmp_path: Path) -> None:
    first = ManagedDomains(tmp_path / "domains")
    first.load()
    for name in ("web2", "web1"):
        first.put(guest_config(name, on_xend_start="start"))
    second = ManagedDomains(tmp_path / "domains")
    second.load()
    assert [config.name for config in second.all()] == ["web1", "web2"]
    assert second.all() == first.all()
    assert second.all()[0].text("on_xend_start") == "start"
    path = tmp_path / "domains" / guest_config("web1").uuid / "config.sxp"
    assert path.read_bytes().startswith(b"(domain (name web1)")
    assert path.stat().st_mode & 0o077 == 0


def test_removed_domain_is_gone_with_its_directory(tmp_path: Path) -> None:
    managed = ManagedDomains(tmp_path)
    config = guest_config("web1")
    managed.put(config)
    managed.checkpoint(config.uuid).write_bytes(b"memory")
    managed.remove(config.uuid)
    managed.remove(config.uuid)
    assert managed.get(config.uuid) is None
    assert list(tmp_path.iterdir()) == []


def test_name_belongs_to_one_uuid(tmp_path: Path) -> None:
    managed = ManagedDomains(tmp_path)
    managed.put(guest_config("web1"))
    managed.put(guest_config("web1", memory="16"))
    other = guest_config("web1", uuid="00000000-0000-0000-0000-000000000001")
    with pytest.raises(DomainExists, match="VM name 'web1' already exists"):
        managed.put(other)
    assert [config.memory_mib for config in managed.all()] == [16]


UUID = "00000000-0000-0000-0000-000000000001"


@pytest.mark.parametrize(
    "content",
    [
        b"(domain (name web1",
        b"(domain (name web1))",
        b"",
        b"(" * 5000,
        b"#" * ((1 << 20) + 1),
        guest_config("web1").encode(),  # another uuid than its directory's
    ],
    ids=["cut", "no-uuid", "empty", "deep", "long", "other-uuid"],
)
def test_unreadable_configuration_is_left_alone_and_said(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / UUID).mkdir()
    (tmp_path / UUID / "config.sxp").write_bytes(content)
    managed = ManagedDomains(tmp_path)
    managed.put(guest_config("web2"))
    managed.load()
    assert [config.name for config in managed.all()] == ["web2"]
    assert "is not read" in caplog.text
    assert (tmp_path / UUID / "config.sxp").read_bytes() == content


def test_domain_that_does_not_run_has_no_id_no_state_and_no_time() -> None:
    summary = inactive(guest_config("web1"))
    tree = {item[0]: item[1] for item in domain_sxp(summary, devices=False)[1:]}  # type: ignore[index,union-attr]
    assert status_of(summary) == 0
    assert tree["status"] == 0
    assert tree["name"] == "web1"
    assert not {"domid", "state", "cpu_time", "store_mfn"} & set(map(str, tree))
