import threading

import pytest

from tests import recorded
from tests.bytes_source import BytesSource
from tests.guests import (
    OTHER_UUID,
    UUID,
    batch,
    closing,
    guest,
    opening,
    send_all,
    send_guest,
    send_pages,
    span,
    u64,
)
from tests.hypervisor.contract import CLASHES, GuestContract, say_all
from tests.peers.xl_driver import driver, incoming
from xendpy import sxp
from xendpy.control.domain_sxp import domain_sxp
from xendpy.errors import (
    DomainError,
    DomainExists,
    DomainStateError,
    HypervisorError,
    HypervisorUnavailable,
    OutOfMemory,
    ToolstackError,
    Unsupported,
    UnsupportedStream,
    XendError,
)
from xendpy.guest.domain import DomainConfig, DomainState
from xendpy.guest.pages import PageType
from xendpy.hypervisor import open as opening_module
from xendpy.hypervisor import xladmission
from xendpy.hypervisor.open import open_hypervisor
from xendpy.hypervisor.xlguest import TRADITIONAL
from xendpy.migration.receive import NoGuest, drive
from xendpy.migration.saved_file import Cancel, restore_file, save_file
from xendpy.paths import Paths
from xendpy.stream.convert import to_modern
from xendpy.stream.libxl import LibxlEncoder
from xendpy.stream.records import End, Ending, Pages, PvInfo, StreamStart
from xendpy.stream.xend import decode_body, read_envelope


class TestContract(GuestContract):
    @pytest.mark.parametrize("config", [guest("other"), guest(uuid=OTHER_UUID), guest()])
    def test_a_guest_on_its_way_in_has_its_name_and_uuid(self, hypervisor, config):
        with hypervisor.restore(guest()):
            text = "Domain 'web01' is on its way in already"
            with pytest.raises(DomainExists, match=text), hypervisor.restore(config):
                raise AssertionError("let in")

    @pytest.mark.parametrize("first", ["live"])
    @pytest.mark.parametrize(("differs", "text"), [row[1:] for row in CLASHES[:2]])
    def test_a_clash_is_refused_before_a_page(self, hypervisor, differs, text, first):
        super().test_a_clash_is_refused_before_a_page(hypervisor, differs, text, first)


def restored(hypervisor, config=None, **more):
    with hypervisor.restore(config or guest(), **more) as session:
        send_guest(session, span(0, 32))
        return session.complete()


def test_records_come_out_as_they_went_in(hypervisor):
    domain = restored(hypervisor)
    pages = {}
    with hypervisor.save(domain) as source:
        names = []
        for record in source.records():
            if isinstance(record, Pages):
                data = b"".join(bytes(view) for view in record.views)
                for index, pfn in enumerate(record.batch.with_data().tolist()):
                    pages[pfn] = data[index * 4096]
            elif type(record).__name__ not in names:
                names.append(type(record).__name__)
        source.resume()
    assert pages == dict.fromkeys(range(32), 1)
    assert names == [
        "StreamStart", "PvInfo", "StaticDataEnd", "P2mFrames", "TscInfo", "VcpuContext",
        "SharedInfo", "End",
    ]  # fmt: skip
    assert source.config == guest()
    assert hypervisor.find(domain.name) == domain


@pytest.mark.parametrize("name", recorded.RELOCATIONS)
def test_xl_is_given_what_xm_convert_makes_of_an_old_senders_stream(
    tmp_path, xl, monkeypatch, name
):
    monkeypatch.setitem(xladmission.DEVICE_MODELS, TRADITIONAL, (str(tmp_path),))  # it is there
    wire, _ = recorded.load(name)
    source = BytesSource(wire)
    sent = DomainConfig.parse(drive(read_envelope(), source, NoGuest()).config_bytes)
    alone = [item for item in sent.tree if item[0] != "device"]
    config = DomainConfig.from_sxp(alone)
    made = []
    encoder = LibxlEncoder(config.guest_type, is_converted=True)
    conversion = to_modern(encoder, lambda pieces: made.extend(map(bytes, pieces)))
    drive(decode_body(config.guest_type), BytesSource(recorded.image(name)), conversion)
    hypervisor = driver(tmp_path, xl, confined=False)
    with hypervisor.restore(config) as session:
        drive(decode_body(config.guest_type), source, session)
        session.complete()
    hypervisor.close()
    assert xl.guests[0].stream == b"".join(made)


def test_a_modern_image_from_an_old_sender_is_refused_before_a_page(tmp_path, hypervisor):
    modern = StreamStart(
        guest_type=guest().guest_type, format="libxc-v3", tool_width=8, p2m_size=0
    )
    with hypervisor.restore(guest()) as session:
        text = "a libxc-v3 image, sent as xend sends one, is not supported"
        with pytest.raises(UnsupportedStream, match=text):
            session.apply(modern)
    assert (incoming(tmp_path), hypervisor.domains()) == ([], [])
    with hypervisor.restore_saved(guest()) as session:
        session.apply(modern)  # a file of xl's, which needs no second copy


def test_a_cancelled_session_fails_soon(hypervisor):
    with hypervisor.restore(guest()) as session:
        session.cancel()
        with pytest.raises(XendError, match="cancelled"):
            session.populate(batch(u64(1)))
    domain = restored(hypervisor)
    with hypervisor.save(domain) as source:
        source.cancel()
        with pytest.raises(XendError, match="cancelled"):
            next(source.records())


def test_a_save_that_is_left_early_lets_the_guest_go_on(hypervisor, xl):
    domain = restored(hypervisor)
    hypervisor.unpause(domain)
    xl.guests[0].stream = xl.guests[0].stream[:-8] + bytes(4 << 20) + xl.guests[0].stream[-8:]
    with pytest.raises(KeyError), hypervisor.save(domain) as source:
        next(source.records())
        raise KeyError
    (summary,) = hypervisor.domains()
    assert summary.state is DomainState.BLOCKED
    assert summary.note == ""


def test_a_checkpointed_guest_goes_on(hypervisor):
    domain = restored(hypervisor)
    hypervisor.unpause(domain)
    with hypervisor.save(domain) as source:
        say_all(source)
        assert hypervisor.domains()[0].state is DomainState.PAUSED
        source.resume()
    assert hypervisor.domains()[0].state is DomainState.BLOCKED


def test_a_paused_guest_that_was_saved_is_paused_again(hypervisor):
    domain = restored(hypervisor)
    with hypervisor.save(domain) as source:
        say_all(source)
        source.resume()
    assert hypervisor.domains()[0].state is DomainState.PAUSED


def test_a_held_guest_cannot_be_unpaused_also_after_a_restart(hypervisor, tmp_path, xl):
    domain = restored(hypervisor)
    hypervisor.unpause(domain)
    with hypervisor.save(domain) as source:
        say_all(source)
        source.hold("et-virt08 may own it")
    hypervisor.close()
    again = driver(tmp_path, xl)
    with pytest.raises(DomainStateError, match="et-virt08 may own it"):
        again.unpause(domain)
    again.release_hold(domain)
    assert again.domains()[0].state is DomainState.BLOCKED
    again.close()


def test_a_restarted_daemon_gives_back_what_a_save_left_paused(hypervisor, tmp_path, xl):
    domain = restored(hypervisor)
    hypervisor.unpause(domain)
    save = hypervisor.save(domain)
    say_all(save.__enter__())
    hypervisor.close()  # the daemon ends here
    again = driver(tmp_path, xl)
    assert again.domains()[0].state is DomainState.PAUSED
    again.release_hold(domain)
    assert again.domains()[0].state is DomainState.BLOCKED
    again.close()


def test_a_localhost_migration_has_two_guests_of_one_uuid(hypervisor):
    domain = restored(hypervisor)
    with hypervisor.save(domain, migration_id="a" * 32) as source:
        say_all(source)
        copy = restored(hypervisor, migration_id="a" * 32)
        assert copy.name == "web01--incoming"
        assert hypervisor.arrival("a" * 32) == copy
        hypervisor.unpause(copy)
        names = [item.name for item in hypervisor.domains()]
        assert names == ["web01--migratedaway", "web01"]
        source.relinquish()
    (summary,) = hypervisor.domains()
    assert (summary.domid, summary.name) == (copy.domid, "web01")
    assert hypervisor.arrival("b" * 32) is None


def test_too_large_a_guest_is_refused(hypervisor, xl):
    xl.free_mib = 10
    with pytest.raises(OutOfMemory, match="18 MiB, the hypervisor has 10 MiB free"):
        restored(hypervisor)


@pytest.mark.parametrize(
    ("has_mib", "free_mib", "told"),
    [
        (0, 36, ""),  # each takes 16 MiB and 2 for Xen
        (0, 35, "18 MiB, the hypervisor has 17 MiB free"),
        (10, 26, ""),
        (10, 25, "18 MiB, the hypervisor has 17 MiB free"),
        (16, 20, ""),
        (16, 19, "18 MiB, the hypervisor has 17 MiB free"),
        (17, 19, ""),
        (30, 18, ""),
        (30, 17, "18 MiB, the hypervisor has 17 MiB free"),
    ],
)
def test_a_guest_on_its_way_in_counts_with_what_it_has_not_taken_yet(
    hypervisor, xl, has_mib, free_mib, told
):
    with hypervisor.restore(guest()):
        if has_mib:
            memory = {"target_memkb": has_mib << 10, "avail_vcpus": [0]}
            xl.add({"c_info": {"name": "(null)", "uuid": UUID}, "b_info": memory})
        xl.free_mib = free_mib
        xl.calls.clear()
        came = hypervisor.restore(guest("web02", OTHER_UUID))
        if told:
            with pytest.raises(OutOfMemory, match=told), came:
                raise AssertionError("let in")
        else:
            with came:
                assert [call[0] for call in xl.calls] == ["list", "info", "restore"]


REFUSALS = [
    (
        "32-bit",
        "(device (vbd (protocol x86_32-abi) (dev xvda:disk) (uname phy:x)))",
        "is not below",
    ),
    ("pci", "(device (pci (dev (slot 0x0))))", "pci device cannot be taken along"),
    ("disk", "(device (vbd (dev xvda:disk) (uname file:/etc/shadow)))", "disk /etc/shadow is not"),
    ("dots", "(device (vbd (dev xvda:disk) (uname file:/boot/../etc/shadow)))", "is not below"),
    ("driver", "(device (vbd (dev xvda:disk) (uname phy:x) (backend stor)))", "backend stor"),
    ("gone", "(device (vbd (dev xvda:disk) (uname file:/boot/none.img)))", "cannot be opened"),
    ("script", "(device (vif (script /tmp/evil)))", "vif script /tmp/evil is not allowed"),
    ("action", "", "on_crash nonsense"),
]


@pytest.mark.parametrize(
    ("extra", "text"), [row[1:] for row in REFUSALS], ids=[row[0] for row in REFUSALS]
)
def test_what_must_not_come_in_is_refused_before_xl_is_started(hypervisor, xl, extra, text):
    raw = guest().encode().replace(b"(status 2)", b"(status 2)" + extra.encode())
    if not extra:
        raw = raw.replace(b"(on_crash restart)", b"(on_crash nonsense)")
    with pytest.raises(DomainError, match=text), hypervisor.restore(DomainConfig.parse(raw)):
        raise AssertionError("let in")
    assert not [call for call in xl.calls if call[0] == "restore"]


def test_a_missing_bridge_is_named(tmp_path, xl):
    hypervisor = driver(tmp_path, xl, exists=lambda path: False)
    with pytest.raises(DomainError, match="bridge xenbr0 does not exist here"):
        restored(hypervisor)
    hypervisor.close()


def test_a_32_bit_guest_is_refused_where_none_can_run(hypervisor):
    with hypervisor.restore(guest()) as session:
        start, _info, _frames = opening()
        session.apply(start)
        with pytest.raises(HypervisorError, match="32-bit PV guest"):
            session.apply(PvInfo(guest_width=4, pt_levels=3, context=bytes(2800)))
    assert hypervisor.domains() == []


def test_an_hvm_guest_needs_its_device_model(hypervisor):
    raw = guest().encode().replace(b"(image (linux", b"(image (hvm (boot c)")
    text = "needs the device model qemu-xen-traditional, which is not installed"
    with pytest.raises(HypervisorError, match=text):
        restored(hypervisor, DomainConfig.parse(raw))


def test_a_build_that_fails_before_the_end_says_why_and_leaves_nothing(hypervisor, xl, tmp_path):
    xl.die_after = 100_000
    with pytest.raises(ToolstackError, match="error"), hypervisor.restore(guest()) as session:
        send_all(session, opening())
        for first in range(0, 4096, 1024):
            send_pages(session, span(first, 1024), 1)
    assert hypervisor.domains() == []
    assert incoming(tmp_path) == []


def test_save_files_are_xls_own(hypervisor, tmp_path):
    domain = restored(hypervisor)
    path = tmp_path / "web01.sav"
    report = save_file(hypervisor, domain, path, checkpoint=False, cancel=Cancel())
    assert report.nr_pages == 32
    assert path.read_bytes().startswith(b"Xen saved domain, xl format")
    assert hypervisor.domains() == []
    assert restore_file(hypervisor, path, cancel=Cancel()).name == "web01"
    assert incoming(tmp_path) == []


def test_a_guest_is_created_paused_wherever_its_kernel_is(hypervisor):
    raw = guest().encode().replace(b"/boot/vm", b"/root/vm")
    domain = hypervisor.create(DomainConfig.parse(raw))
    (summary,) = hypervisor.domains()
    assert (summary.domid, summary.state) == (domain.domid, DomainState.PAUSED)


def test_what_xl_has_changed_since_a_guest_came_is_listed_and_goes_along(hypervisor, xl):
    came = hypervisor.create(guest()), restored(hypervisor, guest("web02", OTHER_UUID))
    for domain, made in zip(came, xl.guests, strict=True):
        before = next(item for item in hypervisor.domains() if item.domid == domain.domid)
        assert before.config.raw == guest(domain.name, domain.uuid).raw
        disk = {"vdev": "xvdb", "pdev_path": "/boot/data.img", "format": "raw", "readwrite": 1}
        made.config["disks"] = [disk]
        hypervisor.set_memory(domain, 12)
        hypervisor.set_vcpus(domain, 1)
        with hypervisor.save(domain) as source:
            source.resume()
        (summary,) = [item for item in hypervisor.domains() if item.domid == domain.domid]
        assert summary.config == source.config
        assert [kind for kind, _ in source.config.devices()] == ["vif", "vbd"]
        assert (summary.config.memory_mib, summary.maxmem_mib) == (12, 16)


def test_guests_of_other_tools_are_listed(hypervisor, xl):
    import json

    from tests.peers.fake_xl import DATA

    (listed,) = json.loads((DATA / "list-l.json").read_text())[1:]
    xl.add(listed["config"], flags="---s--")
    (summary,) = hypervisor.domains()
    assert (summary.name, summary.state) == ("tick", DomainState.SHUTDOWN)
    assert summary.maxmem_mib == 96


FOREIGN = [
    ("blank", "win 10", "win 10"),
    ("columns", "web 4 92 1 ------", "web 4 92 1 ------"),
    ("long", "a guest " * 8 + "x", "a guest " * 8 + "x"),
    ("at", "web@lab", "web@lab"),
    ("brackets", "a(b)", "a(b)"),
    ("quote", """it's "me\"""", """it's "me\""""),
    ("umlaut", "b\xfccher", "b\xfccher"),
    ("two lines", "one\ntwo", "one?two"),
    ("bell", "one\atwo", "one?two"),
    ("path", "../web", "../web"),
]


@pytest.mark.parametrize(
    ("name", "shown"), [row[1:] for row in FOREIGN], ids=[row[0] for row in FOREIGN]
)
def test_a_guest_that_no_xend_could_have_disturbs_no_other(hypervisor, xl, tmp_path, name, shown):
    config = {
        "c_info": {"type": "pv", "name": name, "uuid": OTHER_UUID},
        "b_info": {"max_vcpus": 1, "avail_vcpus": [0], "max_memkb": 65536, "target_memkb": 65536},
        "disks": [{"vdev": "xvda", "pdev_path": "/dev/vg/win"}],
    }
    xl.add(config, flags="-b----")
    domain = restored(hypervisor)
    hypervisor.close()
    again = driver(tmp_path, xl)  # the daemon starts with it
    foreign, own = again.domains()
    assert (foreign.name, foreign.config.name, foreign.memory_mib) == (shown, shown, 64)
    assert [kind for kind, _ in foreign.config.devices()] == ["vbd", "console"]
    assert domain_sxp(foreign, devices=True)[0] == "domain"
    assert sxp.child_value(sxp.parse_one(sxp.encode(foreign.config.tree)), "name") == shown
    assert own.config == guest()
    there = again.find(shown)
    assert again.state(there) is DomainState.BLOCKED
    text = "Invalid VM Name: no xend would take domain 1"
    with pytest.raises(DomainError, match=text), again.save(there):
        raise AssertionError("let go")
    assert (xl.guests[0].flags, again.domains()[0].note) == ("-b----", "")
    with again.save(domain) as source:
        source.relinquish()
    again.rename(there, "win10")
    with again.save(again.find("win10")) as source:
        source.resume()
    again.close()


@pytest.mark.parametrize(
    ("part", "wrong"),
    [
        ("c_info", {"uuid": OTHER_UUID, "name": "web02", "type": None}),
        ("b_info", {"max_memkb": 1 << 42, "target_memkb": 65536, "avail_vcpus": [0]}),
        ("disks", [{"pdev_path": "/dev/x"}]),
    ],
)
def test_a_guest_of_which_libxl_says_what_nobody_knows_is_listed(hypervisor, xl, part, wrong):
    config = {
        "c_info": {"type": "pv", "name": "web02", "uuid": OTHER_UUID},
        "b_info": {"max_vcpus": 1, "avail_vcpus": [0], "max_memkb": 65536, "target_memkb": 65536},
    }
    xl.add({**config, part: wrong})
    domain = restored(hypervisor)
    xl.guests[1].config["disks"] = [{"pdev_path": "/dev/x"}]
    foreign, own = hypervisor.domains()
    assert (foreign.name, foreign.memory_mib, foreign.vcpus) == ("web02", 64, 1)
    assert own.config == guest()
    with pytest.raises(DomainError, match="not understood"), hypervisor.save(domain):
        raise AssertionError("let go without its disk")


@pytest.mark.parametrize("change", ["1.5", ""])
def test_columns_that_nobody_knows_are_an_error(hypervisor, xl, monkeypatch, change):
    restored(hypervisor)
    listed = xl.do_list("-v")
    text = listed.replace("  5.5 ", f" {change}x") if change else f"{listed}rest"
    monkeypatch.setattr(xl, "do_list", lambda how: text)
    with pytest.raises(HypervisorError, match="a line of `xl list -v` is not understood"):
        hypervisor.find("web01")


def test_xl_can_neither_crash_nor_suspend_a_guest(hypervisor):
    domain = restored(hypervisor)
    hypervisor.shutdown(domain, "poweroff")
    for reason in ("crash", "suspend"):
        with pytest.raises(Unsupported):
            hypervisor.shutdown(domain, reason)


def test_one_daemon_has_the_state_directory(hypervisor, tmp_path, xl):
    with pytest.raises(HypervisorUnavailable, match="in use by another daemon"):
        driver(tmp_path, xl)


def test_auto_is_the_store_where_no_xen_is(tmp_path, monkeypatch):
    monkeypatch.setattr(opening_module, "XEN_CAPABILITIES", tmp_path / "capabilities")
    with pytest.raises(HypervisorUnavailable, match="no Xen on this host"):
        open_hypervisor("xl", Paths(tmp_path))
    store = open_hypervisor("auto", Paths(tmp_path))
    assert store.name == "store"
    store.close()


def test_a_xen_that_cannot_be_used_is_told_of(tmp_path, monkeypatch, caplog):
    for name, text in (("capabilities", "\n"), ("type", "xen\n")):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(opening_module, "XEN_CAPABILITIES", tmp_path / "capabilities")
    monkeypatch.setattr(opening_module, "HYPERVISOR_TYPE", tmp_path / "type")
    open_hypervisor("auto", Paths(tmp_path / "host")).close()
    assert "capabilities does not say control_d" in caplog.text


def test_pages_without_data_reach_xl(hypervisor):
    with hypervisor.restore(guest()) as session:
        send_all(session, opening())
        send_pages(session, span(0, 8), 1)
        send_pages(session, span(8, 4), 0, PageType.XALLOC)
        session.apply(Ending())
        send_all(session, [*closing(), End()])
        domain = session.complete()
    with hypervisor.save(domain) as source:
        kinds = [
            record.batch.types.tolist() for record in source.records() if isinstance(record, Pages)
        ]
    assert kinds[-1] == [PageType.XALLOC] * 4


def test_a_stream_of_a_newer_host_is_not_translated(hypervisor):
    domain = restored(hypervisor)
    with hypervisor.save(domain) as source:
        first = next(source.records())
    assert isinstance(first, StreamStart)
    assert first.format.startswith("libxc-v")
    assert threading.active_count() < 20
