"""One line of meaning per record: a stream as a teacher would read it out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from xendpy.guest.pages import PageBatch, PageType, runs
from xendpy.stream import records as r
from xendpy.stream.records import Record

# Xen's hvm/params.h
HVM_PARAMS: Mapping[int, str] = {
    1: "STORE_PFN",
    4: "PAE_ENABLED",
    5: "IOREQ_PFN",
    6: "BUFIOREQ_PFN",
    9: "VIRIDIAN",
    12: "IDENT_PT",
    15: "VM86_TSS",
    17: "CONSOLE_PFN",
    19: "ACPI_IOPORTS_LOCATION",
    27: "PAGING_RING_PFN",
    28: "ACCESS_RING_PFN",
    29: "SHARING_RING_PFN",
    32: "IOREQ_SERVER_PFN",
    33: "NR_IOREQ_SERVER_PAGES",
    34: "VM_GENERATION_ID_ADDR",
}
TSC_MODES = ("default", "always emulate", "never emulate", "never emulate, TSC_AUX")


def explain(record: Record) -> str:
    """Return what `record` says, in one line."""
    say = _SAY.get(type(record))
    return say(record) if say is not None else ""


def page_types(batch: PageBatch) -> str:
    """Return the types of a batch with their counts: `1020 NOTAB, 4 L1TAB`."""
    counts = np.bincount(batch.types, minlength=16)
    return ", ".join(f"{counts[t]} {PageType(t).name}" for t in np.flatnonzero(counts).tolist())


def _start(record: r.StreamStart) -> str:
    size = f", p2m size {record.p2m_size:#x} (highest pfn + 1)" if record.p2m_size else ""
    guest = record.guest_type.name
    return f"{record.format}: {guest} guest, {record.tool_width * 8}-bit tools{size}"


def _pv_info(record: r.PvInfo) -> str:
    said = "extended info" if record.has_ext_info else "no extended info: inferred"
    parts = [f"{said}: {record.guest_width * 8}-bit guest, {record.pt_levels} page-table levels"]
    if record.extended:
        parts.append("128 more bytes a vcpu in the tail")
    if record.xsave_bytes is not None:
        parts.append(f"{record.xsave_bytes} bytes of xsave a vcpu")
    return ", ".join(parts)


def _p2m_frames(record: r.P2mFrames) -> str:
    return f"{len(record.frames)} pages hold the guest's own table of frames"


def _pages(record: r.Pages) -> str:
    firsts, counts = runs(record.batch.pfns)
    if not len(firsts):
        return "no pages"
    last = int(firsts[-1] + counts[-1]) - 1
    places = f"pfn {int(firsts[0]):#x}-{last:#x}"
    pieces = f" in {len(firsts)} runs" if len(firsts) > 1 else ""
    return f"{len(record.batch)} pages, {places}{pieces}: {page_types(record.batch)}"


def _online(record: r.OnlineVcpus) -> str:
    ids = " ".join(map(str, record.ids))
    return f"highest possible vcpu {record.max_vcpu_id}; in the tail: {ids or 'none'}"


def _tsc(record: r.TscInfo) -> str:
    mode = TSC_MODES[record.mode] if record.mode < len(TSC_MODES) else "unknown"
    return (
        f"mode {record.mode} ({mode}), {record.khz} kHz, {record.nsec} ns, "
        f"incarnation {record.incarnation}"
    )


def _hvm_params(record: r.HvmParams) -> str:
    said = (f"{HVM_PARAMS.get(index, index)}={value:#x}" for index, value in record.params)
    return ", ".join(said)


def _unmapped(record: r.UnmappedPfns) -> str:
    few = " ".join(f"{pfn:#x}" for pfn in record.pfns[:4].tolist())
    more = " ..." if len(record.pfns) > 4 else ""
    return f"{len(record.pfns)} pfns have no frame in the end: {few}{more}".rstrip(": ")


def _vcpu(record: r.VcpuContext) -> str:
    return f"vcpu {record.vcpu_id}, {record.kind.value} state, {_blob(record)}"


def _shared_info(record: r.SharedInfo) -> str:
    return f"the page shared with the hypervisor, sha256 {_sum(record.page)}"


def _emulator(record: r.EmulatorContext) -> str:
    magic = "QEVM" if record.blob.startswith(b"QEVM") else "no QEVM magic"
    return f"{record.signature or 'emulator'}: {_blob(record)}, {magic}"


def _blob(record: Any) -> str:
    return f"{len(record.blob)} bytes, sha256 {_sum(record.blob)}"


def _sum(blob: bytes) -> str:
    return hashlib.sha256(blob).hexdigest()[:16]


_SAY: Mapping[type[Any], Callable[[Any], str]] = {
    r.StreamStart: _start,
    r.PvInfo: _pv_info,
    r.P2mFrames: _p2m_frames,
    r.Pages: _pages,
    r.Verify: lambda _: "the pages that follow were sent before: compare, do not store",
    r.OnlineVcpus: _online,
    r.TscInfo: _tsc,
    r.HvmParams: _hvm_params,
    r.HvmContext: _blob,
    r.UnmappedPfns: _unmapped,
    r.VcpuContext: _vcpu,
    r.SharedInfo: _shared_info,
    r.Toolstack: _blob,
    r.EmulatorContext: _emulator,
    r.EmulatorXenstore: _blob,
    r.CpuidPolicy: _blob,
    r.MsrPolicy: _blob,
    r.LastCheckpoint: lambda _: "this is no checkpoint stream: nothing follows the tail",
    r.End: lambda _: "the whole image has been said",
}
