"""The XML-RPC methods about the host, and our own about migrations.

Source: XMLRPCServer.py and XendNode.py, Xen 3.1 - 4.4.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from xendpy.control import logs
from xendpy.control.abilities import ability
from xendpy.control.guests import Guests
from xendpy.control.migrations import Migrations
from xendpy.control.xmlrpc import Method, Value
from xendpy.errors import Unsupported
from xendpy.hypervisor.storedimage import PartialGuest


class NodeMethods:
    """`xend.node.*`, and `xendpy.*`; `log_file` is where this daemon writes its log."""

    def __init__(self, guests: Guests, migrations: Migrations, log_file: str) -> None:
        self._guests = guests
        self._migrations = migrations
        self._log_file = log_file

    def table(self) -> dict[str, Method]:
        """Return every method by the name that crosses the wire."""
        return {
            "xend.node.info": self.info,
            "xend.node.log": self.log,
            "xend.node.dmesg.info": self.dmesg,
            "xend.node.dmesg.clear": self._unsupported("clear the hypervisor's messages"),
            "xend.node.send_debug_keys": self._unsupported("send debug keys"),
            "xend.node.pciinfo": self._unsupported("list pass-through devices"),
            "xend.cpu_pool.list": self._unsupported("divide cpus into pools"),
            "xendpy.migrations": self.migrations,
            "xendpy.console": self.console,
            "xendpy.partials": self.partials,
            "xendpy.partial.discard": self.discard_partial,
        }

    async def info(self, show_numa: Value = 1) -> Value:
        """Return the host's figures as `[[key, value], ...]`."""
        return await self._guests.node_info(numa=show_numa not in (0, False, "0"))

    async def log(self) -> Value:
        """Return the end of the daemon's log."""
        return await self._guests.workers.quick(logs.tail, Path(self._log_file))

    async def dmesg(self) -> Value:
        """Return the hypervisor's console ring."""
        call: Callable[[], str] = ability(
            self._guests.hypervisor, "hypervisor_log", "show a hypervisor's messages"
        )
        return await self._guests.workers.quick(call)

    async def migrations(self) -> Value:
        """Return the running migrations and the latest finished ones, newest last."""
        return [item.as_struct() for item in self._migrations.all()]

    async def console(self, dom: str | int) -> Value:
        """Return what a guest has printed so far."""
        return (await self._guests.console(dom)).decode("utf-8", "replace")

    async def partials(self) -> Value:
        """Return the guests that came in part, oldest first; sizes as decimal strings.

        A driver that keeps none has none.
        """
        try:
            call: Callable[[], list[PartialGuest]] = ability(
                self._guests.hypervisor, "partials", "keep guests that came in part"
            )
        except Unsupported:
            return []
        return [
            {
                "name": partial.label,
                "path": str(partial.path),
                "uuid": partial.uuid,
                "reason": partial.reason,
                "rounds": partial.rounds,
                "pages": str(partial.pages),
                "bytes": str(partial.nr_bytes),
                "time": partial.kept_time_s,
            }
            for partial in await self._guests.workers.quick(call)
        ]

    async def discard_partial(self, name: str) -> Value:
        """Remove NAME.partial."""
        call: Callable[[str], None] = ability(
            self._guests.hypervisor, "discard_partial", "keep guests that came in part"
        )
        await self._guests.workers.quick(call, str(name))

    def _unsupported(self, what: str) -> Method:
        async def method(*_arguments: Value) -> Value:
            """Say that this host cannot do it."""
            raise Unsupported(f"the {self._guests.hypervisor.name} driver cannot {what}")

        return method
