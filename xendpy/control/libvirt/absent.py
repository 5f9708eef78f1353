"""What virsh may ask for and is not served, by libvirt's own name for the function.

A user reads a name in the refusal and not a number; `xm` has some of it, and then it says so.
"""

from __future__ import annotations

from collections.abc import Mapping

from xendpy.control.libvirt.wire import Code
from xendpy.errors import RpcError

_FUNCTIONS: Mapping[int, str] = {
    8: "virDomainAttachDevice", 13: "virDomainDetachDevice", 26: "virDomainPinVcpu",
    46: "virNetworkLookupByName", 53: "virDomainCoreDump", 55: "virDomainGetSchedulerType",
    56: "virDomainGetSchedulerType", 64: "virDomainBlockStats", 65: "virDomainInterfaceStats",
    113: "virNodeDeviceLookupByName", 128: "virInterfaceLookupByName",
    160: "virDomainAttachDeviceFlags", 161: "virDomainDetachDeviceFlags",
    174: "virDomainUpdateDeviceFlags", 175: "virNWFilterLookupByName",
    185: "virDomainSnapshotCreateXML", 187: "virDomainSnapshotNum",
    194: "virDomainGetBlockInfo", 198: "virDomainGetMemoryParameters",
    201: "virDomainOpenConsole", 203: "virConnectGetSysinfo",
    206: "virDomainGetBlkioParameters", 208: "virStorageVolUpload",
    209: "virStorageVolDownload", 210: "virDomainInjectNMI", 211: "virDomainScreenshot",
    225: "virDomainPinVcpuFlags", 226: "virDomainSendKey", 227: "virNodeGetCPUStats",
    229: "virDomainGetControlInfo", 236: "virDomainSaveImageDefineXML",
    238: "virDomainGetBlockJobInfo", 243: "virDomainBlockStatsFlags", 245: "virDomainReset",
    250: "virNodeSuspendForDuration", 255: "virDomainGetNumaParameters",
    261: "virDomainPMSuspendForDuration", 262: "virDomainGetCPUStats",
    263: "virDomainGetDiskErrors", 265: "virDomainGetMetadata", 267: "virDomainPMWakeup",
    274: "virDomainListAllSnapshots", 277: "virDomainGetHostname",
    280: "virDomainGetEmulatorPinInfo", 289: "virNodeGetMemoryParameters",
    294: "virDomainFSTrim", 299: "virDomainMigrateGetCompressionCache",
    312: "virConnectGetCPUModelNames", 335: "virDomainFSFreeze", 337: "virDomainGetTime",
    347: "virNodeAllocPages", 349: "virDomainGetFSInfo", 351: "virDomainGetIOThreadInfo",
    353: "virDomainInterfaceAddresses", 357: "virDomainSetUserPassword",
    364: "virDomainMigrateStartPostCopy", 365: "virDomainGetPerfEvents",
    371: "virDomainGetGuestVcpus", 389: "virDomainManagedSaveDefineXML",
    396: "virDomainGetLaunchSecurityInfo",
    401: "virConnectListAllNWFilterBindings", 413: "virDomainListAllCheckpoints",
    418: "virDomainGetGuestInfo", 424: "virDomainAuthorizedSSHKeysGet",
    427: "virDomainStartDirtyRateCalc",
}  # fmt: skip
_INSTEAD: Mapping[int, str] = {
    55: "`xm sched-credit`", 56: "`xm sched-credit`", 201: "`xm console`",
}  # fmt: skip
_PROGRAMS: Mapping[int, str] = {
    0x20008087: "QEMU's monitor", 0x00068000: "LXC's namespaces", 0x06900690: "virt-admin",
}  # fmt: skip


def not_served(procedure: int) -> RpcError:
    """Return the refusal of a procedure that is not in the table."""
    function = _FUNCTIONS.get(procedure, f"procedure {procedure}")
    text = f"this function is not supported by the connection driver: {function}"
    instead = _INSTEAD.get(procedure)
    return RpcError(Code.NO_SUPPORT, f"{text} (see {instead})" if instead else text)


def foreign(program: int, version: int) -> RpcError:
    """Return the refusal of a program that is not libvirt's own."""
    what = _PROGRAMS.get(program, f"program {program:#x} version {version}")
    return RpcError(Code.NO_SUPPORT, f"{what} is not served by xendpy")
