"""`xm network-list` and `xm block-list`."""

from __future__ import annotations

from typing import Any

from xendpy.cli.domains import child_value
from xendpy.cli.options import Invocation, UsageError


def network_list(xm: Invocation) -> None:
    """Print the network interfaces of a domain."""
    _print_devices(xm, "vif", NETWORK_HEADER, _network_line)


def block_list(xm: Invocation) -> None:
    """Print the block devices of a domain."""
    _print_devices(xm, "vbd", BLOCK_HEADER, _block_line)


NETWORK_HEADER = "Idx BE     MAC Addr.     handle state evt-ch tx-/rx-ring-ref BE-path"
BLOCK_HEADER = "Vdev  BE handle state evt-ch ring-ref BE-path"


def _network_line(index: str, info: list[Any]) -> str:
    number = _numbers(info)
    return (
        f"{int(index):<3d} {number('backend-id', -1):<3d}"
        f"{child_value(info, 'mac', '??')!s:<17}    {number('handle', 0):<3d}   "
        f"{number('state', -1):<3d}    {number('event-channel', -1):<3d}   "
        f"{number('tx-ring-ref', -1):<5d}/{number('rx-ring-ref', -1):<5d}   "
        f"{child_value(info, 'backend', '??')!s:<30}  "
    )


def _block_line(index: str, info: list[Any]) -> str:
    number = _numbers(info)
    return (
        f"{int(index):<5d}  {number('backend-id', -1):<3d}  {number('handle', 0):<3d}   "
        f"{number('state', -1):<3d}    {number('event-channel', -1):<3d}    "
        f"{number('ring-ref', -1):<5d} {child_value(info, 'backend', '??')!s:<30}  "
    )


def _numbers(info: list[Any]) -> Any:
    return lambda name, default: int(child_value(info, name, default))


def _print_devices(xm: Invocation, kind: str, header: str, line: Any) -> None:
    if not xm.params:
        raise UsageError("No domain parameter given", stdout=True)
    if len(xm.params) > 1:
        raise UsageError("No multiple domain parameters allowed", stdout=True)
    devices = xm.call("xend.domain.getDeviceSxprs", xm.params[0], kind)
    if xm.given("long"):
        from xendpy.sxp import pretty

        for device in devices:
            print(pretty(device), end="")
        return
    if devices:
        print(header)
    for index, info in devices:
        print(line(index, info))
