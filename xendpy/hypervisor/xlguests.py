"""The guests that xl shows, and what is done to them where they are."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from dataclasses import replace

from xendpy import sxp
from xendpy.errors import (
    DomainError,
    DomainExists,
    DomainNotFound,
    HypervisorError,
    Unsupported,
)
from xendpy.guest.domain import (
    MAX_MEMORY_MIB,
    MAX_VCPUS,
    NAME_PATTERN,
    Domain,
    DomainConfig,
    DomainState,
    DomainSummary,
    GuestType,
)
from xendpy.hypervisor.base import Capabilities, Placement
from xendpy.hypervisor.xladmission import Admission
from xendpy.hypervisor.xlchanges import brought_up
from xendpy.hypervisor.xlconsole import Console
from xendpy.hypervisor.xllist import Listed, XenInfo, info, list_guests
from xendpy.hypervisor.xlnotes import Note, Notes
from xendpy.hypervisor.xlrules import GuestRules
from xendpy.hypervisor.xlsxp import to_config
from xendpy.hypervisor.xltool import Tool

log = logging.getLogger(__name__)

SHUTDOWNS = {"poweroff": "shutdown", "halt": "shutdown", "reboot": "reboot"}


class XlGuests:
    """What xl knows and this daemon notes: the part of the driver that moves nothing."""

    def __init__(self, tool: Tool, notes: Notes, admission: Admission) -> None:
        self._tool = tool
        self._notes = notes
        self._admission = admission
        self._begun: dict[tuple[int, str], float] = {}

    # What there is

    def capabilities(self) -> Capabilities:
        """Return what this hypervisor can do, and its free memory."""
        xen = info(self._tool)
        return Capabilities(
            guest_types=xen.guest_types,
            live_save=_live(xen),
            runs_guests=True,
            free_memory_bytes=xen.free_bytes,
            total_memory_bytes=xen.total_bytes,
        )

    def place(self, config: DomainConfig) -> Placement:
        """Say how a guest that is to come in would fit here; see hypervisor.base."""
        return self._admission.look(config, info(self._tool))

    def domains(self) -> list[DomainSummary]:
        """Return the guests that are here, ascending by domid; not those that are being built."""
        return [self._summary(guest) for guest in self._live(with_config=True)]

    def find(self, name_or_id: str) -> Domain:
        """Return the guest by name, then domid, then uuid."""
        guests = self._live()
        for matches in (
            lambda guest: guest.name == name_or_id,
            lambda guest: str(guest.domid) == name_or_id,
            lambda guest: guest.uuid == name_or_id.lower(),
        ):
            for guest in guests:
                if matches(guest):
                    return as_domain(guest)
        raise DomainNotFound(name_or_id)

    def arrival(self, migration_id: str) -> Domain | None:
        """Return the guest that this migration brought, if it is still here."""
        notes = self._notes.of_migration(migration_id) if migration_id else []
        live = {(guest.domid, guest.uuid): guest for guest in self._live()} if notes else {}
        for note in notes:
            guest = live.get((note.domid, note.uuid))
            if guest is not None:
                return as_domain(guest)
        return None

    def state(self, domain: Domain) -> DomainState:
        """Return what a guest is doing; see hypervisor.base."""
        return self._listed(domain).state

    def _live(self, *, with_config: bool = False) -> list[Listed]:
        building = self._admission.names()
        return [
            guest
            for guest in list_guests(self._tool, with_config=with_config)
            if guest.name not in building
            and guest.name != "(null)"
            and guest.state is not DomainState.DYING
        ]

    def _listed(self, domain: Domain, *, with_config: bool = False) -> Listed:
        for guest in self._live(with_config=with_config):
            if (guest.domid, guest.uuid) == (domain.domid, domain.uuid):
                return guest
        raise DomainNotFound(domain.name)

    def _summary(self, guest: Listed) -> DomainSummary:
        note = self._notes.get(guest.domid, guest.uuid)
        config = shown_config(guest, note, self._admission.rules)
        return DomainSummary(
            domid=guest.domid,
            uuid=guest.uuid,
            name=guest.name,
            state=guest.state,
            memory_mib=guest.memory_mib,
            maxmem_mib=config.maxmem_mib,
            vcpus=config.vcpus,
            online_vcpus=guest.online_vcpus,
            cpu_time_s=guest.cpu_time_s,
            start_time_s=note.start_time_s or self._begun_s(guest),
            config=config,
            note=note.held,
            received=note.received,
        )

    def _config_of(self, guest: Listed, note: Note) -> DomainConfig:
        return config_of(guest, note, self._admission.rules)

    def _begun_s(self, guest: Listed) -> float:
        """Return when a guest that xl or another tool started began, as xl counts it."""
        key = (guest.domid, guest.uuid)
        if key not in self._begun:
            self._begun[key] = time.time() - uptime_s(self._tool, guest.domid)
        return self._begun[key]

    # Being here

    def pause(self, domain: Domain) -> None:
        """Stop a guest's vcpus."""
        self._xl("pause", self._listed(domain).domid)

    def shutdown(self, domain: Domain, reason: str) -> None:
        """Ask the guest to end; xl's monitor does what its configuration wants then.

        Raises:
            Unsupported: xl cannot ask for that.
        """
        verb = SHUTDOWNS.get(reason)
        if verb is None:
            raise Unsupported(f"xl cannot ask a guest to {reason}", operation="shutdown")
        self._tool.run([verb, "-F", str(self._listed(domain).domid)])

    def rename(self, domain: Domain, name: str) -> Domain:
        """Give a guest another name."""
        guest = self._listed(domain)
        for other in self._live():
            if other.name == name and other.domid != guest.domid:
                raise DomainExists(
                    name, f"VM name '{name}' already exists as domain {other.domid}"
                )
        self._tool.run(["rename", str(guest.domid), name])
        note = self._notes.get(guest.domid, guest.uuid)
        if note.raw:
            renamed = self._config_of(guest, note).renamed(name)
            self._notes.put(replace(note, raw=renamed.encode().decode("latin-1")))
        return replace(as_domain(guest), name=name)

    def set_memory(self, domain: Domain, mib: int) -> None:
        """Ask the guest to have `mib` MiB."""
        self._tool.run(["mem-set", str(self._listed(domain).domid), f"{mib}m"])

    def set_maxmem(self, domain: Domain, mib: int) -> None:
        """Let the guest have at most `mib` MiB."""
        self._tool.run(["mem-max", str(self._listed(domain).domid), f"{mib}m"])

    def set_vcpus(self, domain: Domain, count: int) -> None:
        """Let the guest have `count` online vcpus."""
        self._tool.run(["vcpu-set", str(self._listed(domain).domid), str(count)])

    def send_sysrq(self, domain: Domain, key: str) -> None:
        """Press a magic SysRq key in the guest."""
        self._tool.run(["sysrq", str(self._listed(domain).domid), key])

    def running(self, domain: Domain) -> Console:
        """Return what a guest has printed, where xenconsoled logs it."""
        return Console(self._listed(domain).name)

    def hypervisor_log(self) -> str:
        """Return the hypervisor's console ring."""
        return self._tool.run(["dmesg"])

    def _xl(self, verb: str, domid: int) -> None:
        self._tool.run([verb, str(domid)])


def _live(xen: XenInfo) -> frozenset[GuestType]:
    """Return the guests whose dirty pages this hypervisor can log while they run."""
    able = set()
    if xen.shadow:
        able |= {GuestType.PV, GuestType.HVM}
    if xen.hap:
        able.add(GuestType.HVM)
    return frozenset(able)


def uptime_s(tool: Tool, domid: int) -> float:
    """Return for how long a guest has been there, in seconds; 0 where xl does not say."""
    with suppress(HypervisorError, IndexError, ValueError):
        # "NAME  ID  12 days, 3:04:05" or "NAME  ID  3:04:05"
        line = tool.run(["uptime", str(domid)]).splitlines()[1]
        hours, minutes, seconds = line.split()[-1].split(":")
        days = int(line.split()[2]) if "day" in line else 0
        return ((days * 24 + int(hours)) * 60 + int(minutes)) * 60.0 + int(seconds)
    return 0.0


def config_of(guest: Listed, note: Note, rules: GuestRules) -> DomainConfig:
    """Return a guest's configuration: as it came and has changed since, else as libxl has it.

    Raises:
        DomainError: it is none that xend could have.
    """
    if note.raw:
        noted = DomainConfig.parse(note.raw.encode("latin-1"))
        if not _known(guest):
            return noted
        return brought_up(noted, guest.config, rules, name=guest.plain_name)
    if not NAME_PATTERN.fullmatch(guest.plain_name):
        reason = f"Invalid VM Name: no xend would take domain {guest.domid}, xm rename it first"
        raise DomainError(guest.plain_name, reason)
    return to_config(guest.config) if _known(guest) else _outline(guest)


def shown_config(guest: Listed, note: Note, rules: GuestRules) -> DomainConfig:
    """Return what is to be seen of a guest's configuration; one that `config_of` refuses has some.

    Anybody may start a guest with xl, and no name that it has may hide the others.
    """
    try:
        return config_of(guest, note, rules)
    except DomainError as error:
        log.debug("domain %d: %s", guest.domid, error)
    if note.raw:
        return DomainConfig.parse(note.raw.encode("latin-1"))
    config = _outline(guest)
    if _known(guest):
        with suppress(DomainError):
            created = {**guest.config["c_info"], "name": config.name}
            config = to_config({**guest.config, "c_info": created})
    name: sxp.SxpValue = ["name", guest.plain_name]
    tree = [name if _is_name(item) else item for item in config.tree]
    return replace(config, name=guest.plain_name, tree=tree)


def _known(guest: Listed) -> bool:
    """Say whether libxl knows a guest's configuration; something else may have started it."""
    return "b_info" in guest.config and "uuid" in guest.config.get("c_info", {})


def _outline(guest: Listed) -> DomainConfig:
    """Return what can be seen of any guest; a name that xend could not have is its uuid."""
    name = guest.plain_name if NAME_PATTERN.fullmatch(guest.plain_name) else guest.uuid
    return DomainConfig.from_sxp(
        [
            "domain",
            ["name", name],
            ["uuid", guest.uuid],
            ["memory", str(min(max(guest.memory_mib, 1), MAX_MEMORY_MIB))],
            ["vcpus", str(min(max(guest.online_vcpus, 1), MAX_VCPUS))],
            ["image", ["linux", ["kernel", ""]]],
        ]
    )


def _is_name(item: sxp.SxpValue) -> bool:
    return isinstance(item, list) and item[:1] == ["name"]


def as_domain(guest: Listed) -> Domain:
    """Return what callers name a guest by."""
    return Domain(domid=guest.domid, uuid=guest.uuid, name=guest.name)
