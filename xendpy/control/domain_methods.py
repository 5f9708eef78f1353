"""The XML-RPC methods about guests: `xend.domain`, `xend.domains` and `xend.domain.*`.

Source: XMLRPCServer.py and XendDomain.py, Xen 3.1 - 4.4. Names and positional arguments are
xend's, older releases' shorter lists included. What no driver here can do is answered in xend's
way, with a fault whose text says so.
"""

from __future__ import annotations

from collections.abc import Mapping

from xendpy.control.device_sxp import device_class, device_entries
from xendpy.control.domain_sxp import domain_sxp
from xendpy.control.guests import Guests
from xendpy.control.migrator import MigrateRequest
from xendpy.control.new_config import new_config
from xendpy.control.xmlrpc import ERROR_GENERIC, Method, Value
from xendpy.errors import RpcError, Unsupported
from xendpy.guest.domain import DomainSummary

AUTOSTART = "autostart"  # in place of create's `force`
Reference = str | int
Flag = bool | int | str | None

# Known to xend, and beyond every driver here: the name, and what it would have done.
_UNSUPPORTED: Mapping[str, str] = {
    "dump": "dump a guest's core",
    "reset": "reset a guest",
    "pincpu": "pin vcpus to cpus",
    "cpu_sedf_get": "schedule by SEDF",
    "cpu_sedf_set": "schedule by SEDF",
    "sched_credit_set": "change a guest's cpu weight and cap",
    "sched_credit2_get": "schedule by credit2",
    "sched_credit2_set": "schedule by credit2",
    "shadow_control": "change a guest's shadow memory",
    "shadow_mem_set": "change a guest's shadow memory",
    "device_create": "attach devices",
    "device_configure": "configure devices",
    "destroyDevice": "detach devices",
    "send_trigger": "send triggers",
    "ioport_range_enable": "give io ports to guests",
    "ioport_range_disable": "take io ports from guests",
    "usb_add": "attach USB devices",
    "usb_del": "detach USB devices",
    "configure": "change a guest's configuration",
}


# fmt: off
_METHODS = (
    "create", "create_from_dict", "restore", "save", "migrate", "pause", "unpause", "destroy",
    "suspend", "resume", "shutdown", "setName", "new", "start", "delete", "setMemoryTarget",
    "maxmem_set", "setVCpuCount", "send_sysrq", "getVCPUInfo", "waitForDevices",
    "getRestartCount", "getDeviceSxprs", "getBlockDeviceClass", "sched_credit_get",
    "shadow_mem_get", "setpauseflag", "getpauseflag", "lookup", "lookup_nr",
)
# fmt: on


class DomainMethods:
    """The methods; each is one of xend's, by its own name."""

    def __init__(self, guests: Guests) -> None:
        self._guests = guests
        self._pause_flags: set[str] = set()

    def table(self) -> dict[str, Method]:
        """Return every method by the name that crosses the wire."""
        table: dict[str, Method] = {
            "xend.domain": self.domain,
            "xend.domains": self.domains,
            "xend.domains_with_state": self.domains_with_state,
        }
        for name in _METHODS:
            table[f"xend.domain.{name}"] = getattr(self, name)
        for name, what in _UNSUPPORTED.items():
            table[f"xend.domain.{name}"] = self._unsupported(what)
        return table

    def _unsupported(self, what: str) -> Method:
        async def method(dom: Reference, *_arguments: Value) -> Value:
            """Say that this host cannot do it."""
            guest = await self._guests.get(dom)
            driver = self._guests.hypervisor.name
            raise Unsupported(f"domain '{guest.name}': the {driver} driver cannot {what}")

        return method

    # Looking

    async def domain(self, dom: Reference, full: Flag = 0) -> Value:
        """Return one guest as an sxp, with its devices if `full`."""
        return domain_sxp(await self._guests.get(dom), devices=_flag(full))

    async def domains(self, detail: Flag = True, full: Flag = False) -> Value:
        """Return the live guests: sxps, or names without `detail`.

        Among the names are those of guests between two lives: `xm reboot -w` takes a guest that
        is missing for one that failed to come back.
        """
        live = await self._guests.live()
        if _flag(detail):
            return _shown(live, detail, full)
        names = (*(guest.name for guest in live), *self._guests.restarting.values())
        return list(dict.fromkeys(names))

    async def domains_with_state(self, detail: Flag, state: str, full: Flag = False) -> Value:
        """Return the guests in a state, managed ones that do not run among them."""
        return _shown(await self._guests.guests(state), detail, full)

    async def lookup(self, dom: Reference) -> Value:
        """Return one guest as an sxp."""
        return domain_sxp(await self._guests.get(dom), devices=True)

    async def lookup_nr(self, dom: Reference) -> Value:
        """Return one guest as an sxp."""
        return domain_sxp(await self._guests.get(dom), devices=True)

    async def getVCPUInfo(self, dom: Reference) -> Value:
        """Return the guest's vcpus: number, online, blocked, running, time, cpu, affinity."""
        guest = await self._guests.get(dom)
        return _vcpu_info(guest, self._guests.host.nr_cpus())

    async def getRestartCount(self, dom: Reference) -> Value:
        """Return how often the guest was restarted by its on_reboot or on_crash."""
        between = self._guests.restarting.items()
        found = next((uuid for uuid, name in between if dom in (uuid, name)), None)
        uuid = found or (await self._guests.get(dom)).uuid
        return str(self._guests.restarts[uuid])

    async def waitForDevices(self, dom: Reference) -> Value:
        """Return when the guest's devices are connected."""
        await self._guests.get(dom)  # `create` returns with its devices in place

    async def getDeviceSxprs(self, dom: Reference, kind: str) -> Value:
        """Return the devices of a class as `[[id, [[key, value], ...]], ...]`."""
        return device_entries(await self._guests.get(dom), kind)

    async def getBlockDeviceClass(self, dom: Reference, device: Reference) -> Value:
        """Return the class, vbd or tap, of a disk."""
        return device_class(await self._guests.get(dom), str(device))

    async def sched_credit_get(self, dom: Reference) -> Value:
        """Return the guest's cpu weight and cap."""
        tree = domain_sxp(await self._guests.get(dom), devices=False)
        found = {item[0]: item[1] for item in tree if isinstance(item, list) and len(item) == 2}
        return {"weight": found.get("cpu_weight", 256), "cap": found.get("cpu_cap", 0)}

    async def shadow_mem_get(self, dom: Reference) -> Value:
        """Return the guest's shadow memory in MiB."""
        tree = domain_sxp(await self._guests.get(dom), devices=False)
        return next(
            item[1] for item in tree if isinstance(item, list) and item[0] == "shadow_memory"
        )

    # Coming and going

    async def create(self, config: Value, force: Flag = False) -> Value:
        """Build a guest, paused, and return its sxp.

        `force`: though it was moved away; `autostart` instead: nobody looks on.
        """
        autostart = force == AUTOSTART
        guest = await self._guests.create(
            new_config(config, self._guests.defaults),
            force=not autostart and _flag(force),
            autostart=autostart,
        )
        return domain_sxp(guest, devices=True)

    async def create_from_dict(self, config: Value) -> Value:
        """Build a guest, paused, from a struct of Xen-API's."""
        raise Unsupported("a configuration must be an sxp, not a struct")

    async def restore(self, path: str, paused: Flag = False, force: Flag = False) -> Value:
        """Build the guest that a save file holds, and return its sxp; `force` as in `create`."""
        guest = await self._guests.restore(_text(path), paused=_flag(paused), force=_flag(force))
        return domain_sxp(guest, devices=True)

    async def save(self, dom: Reference, path: str, checkpoint: Flag = False) -> Value:
        """Write a guest to a file; without `checkpoint` it is gone afterwards."""
        await self._guests.save(dom, _text(path), checkpoint=_flag(checkpoint))

    async def migrate(self, dom: Reference, dst: str, live: Flag = False, *rest: Value) -> Value:
        """Send a guest to another host; the arguments are those of 3.1, 3.3 or 4.0."""
        await self._guests.migrate(dom, migrate_request(_text(dst), _flag(live), rest))

    async def pause(self, dom: Reference, state: Flag = False) -> Value:
        """Stop a guest's vcpus."""
        await self._guests.pause(dom)

    async def unpause(self, dom: Reference) -> Value:
        """Let a paused guest go on."""
        await self._guests.unpause(dom)

    async def setpauseflag(self, dom: Reference, flag: Flag = False) -> Value:
        """Note that a user, not the daemon, paused the guest."""
        guest = await self._guests.get(dom)
        if _flag(flag):
            self._pause_flags.add(guest.uuid)
        else:
            self._pause_flags.discard(guest.uuid)

    async def getpauseflag(self, dom: Reference) -> Value:
        """Say whether `setpauseflag` was told so."""
        return (await self._guests.get(dom)).uuid in self._pause_flags

    async def destroy(self, dom: Reference) -> Value:
        """End a guest at once."""
        await self._guests.destroy(dom)

    async def shutdown(self, dom: Reference, reason: str = "poweroff") -> Value:
        """Ask a guest to end: poweroff, reboot, suspend, crash or halt."""
        await self._guests.shutdown(dom, reason)

    async def setName(self, dom: Reference, name: str) -> Value:
        """Give a guest another name."""
        await self._guests.rename(dom, _text(name))

    # Managed domains

    async def new(self, config: Value) -> Value:
        """Keep a configuration as a managed domain."""
        await self._guests.new(new_config(config, self._guests.defaults))

    async def delete(self, dom: Reference) -> Value:
        """Forget a managed domain."""
        await self._guests.delete(dom)

    async def start(self, dom: Reference, start_paused: Flag = True, force: Flag = False) -> Value:
        """Run a managed domain; `force`: though it was moved away."""
        await self._guests.start(dom, paused=_flag(start_paused), force=_flag(force))

    async def suspend(self, dom: Reference) -> Value:
        """Put a managed domain's memory on disk and end it."""
        await self._guests.suspend(dom)

    async def resume(
        self, dom: Reference, start_paused: Flag = True, force: Flag = False
    ) -> Value:
        """Run a managed domain from where `suspend` stopped it; `force` as in `start`."""
        await self._guests.resume(dom, paused=_flag(start_paused), force=_flag(force))

    # Tuning

    async def setMemoryTarget(self, dom: Reference, mib: Reference) -> Value:
        """Ask a guest to have `mib` MiB."""
        await self._guests.set_memory(dom, _integer(mib))

    async def maxmem_set(self, dom: Reference, mib: Reference) -> Value:
        """Let a guest have at most `mib` MiB."""
        await self._guests.set_maxmem(dom, _integer(mib))

    async def setVCpuCount(self, dom: Reference, count: Reference) -> Value:
        """Let a guest have `count` vcpus online."""
        await self._guests.set_vcpus(dom, _integer(count))

    async def send_sysrq(self, dom: Reference, key: Reference) -> Value:
        """Press a magic SysRq key in a guest."""
        await self._guests.sysrq(dom, str(key))


def migrate_request(dst: str, live: bool, rest: tuple[Value, ...]) -> MigrateRequest:
    """Return what the arguments behind `live` ask for.

    3.1, 3.2: resource, port. 3.3, 3.4: port, node, ssl. 4.x: ... and change_home_server. Two
    arguments are 3.1's: the newer clients always send all of theirs.
    """
    if len(rest) > 4:
        raise RpcError(ERROR_GENERIC, f"migrate takes 2 to 7 arguments, not {len(rest) + 3}")
    if len(rest) == 2:
        return MigrateRequest(destination=dst, live=live, port=_integer(rest[1]))
    port, node, ssl, home = rest + (0, -1, None, 0)[len(rest) :]
    return MigrateRequest(
        destination=dst,
        live=live,
        port=_integer(port),
        node=_integer(node),
        tls=None if ssl is None else _flag(ssl),
        change_home_server=_flag(home),
    )


def _shown(guests: list[DomainSummary], detail: Flag, full: Flag) -> Value:
    if not _flag(detail):
        return [guest.name for guest in guests]
    return [domain_sxp(guest, devices=_flag(full)) for guest in guests]


def _vcpu_info(guest: DomainSummary, nr_cpus: int) -> Value:
    """Return `['domain', domid, name, vcpu_count, ['vcpu', ...]...]` as XendDomainInfo does."""
    tree: list[Value] = ["domain"]
    if guest.domid is not None:
        tree.append(["domid", guest.domid])
    tree += [["name", guest.name], ["vcpu_count", guest.vcpus]]
    running = guest.state.flags[0] == "r"
    for number in range(guest.vcpus):
        online = number < guest.online_vcpus and guest.domid is not None
        tree.append([
            "vcpu",
            ["number", number],
            ["online", int(online)],
            ["blocked", int(online and guest.state.flags[1] == "b")],
            ["running", int(online and running)],
            ["cpu_time", guest.cpu_time_s / max(1, guest.online_vcpus) if online else 0.0],
            ["cpu", number % nr_cpus if online else -1],
            ["cpumap", list(range(nr_cpus))],
        ])  # fmt: skip
    return tree


def _flag(value: Value) -> bool:
    """Return what a client of any age means by a flag: boolean, int, or '0' and '1'."""
    return value not in (False, None, "", "0", "False", "no")


def _integer(value: Value) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise RpcError(ERROR_GENERIC, f"not a number: {value!r}") from None


def _text(value: Value) -> str:
    if not isinstance(value, str):
        raise RpcError(ERROR_GENERIC, f"not a string: {value!r}")
    return value
