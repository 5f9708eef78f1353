"""A test guest as Records: what a stream says of it before and after its memory.

The vcpus are idle in their one loop; their contexts follow from the memory. Vcpu 0 has the pfn of
the state page in rbx and the tick counter in rcx, so that contexts and memory of two different
moments do not pass for one guest. Offsets: xen/include/public/arch-x86_64.h.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from xendpy.guest.domain import GuestType
from xendpy.guest.pages import PAGE_SHIFT, PAGE_SIZE
from xendpy.hypervisor import testguest_layout as layout
from xendpy.stream.records import (
    End,
    LastCheckpoint,
    OnlineVcpus,
    P2mFrames,
    PvInfo,
    Record,
    SharedInfo,
    StreamStart,
    TscInfo,
    UnmappedPfns,
    VcpuContext,
    VcpuContextKind,
)

MAX_VCPUS = 32  # those that have a place in the shared info page
CONTEXT_BYTES = 5168
CONTEXT = layout.structure(
    CONTEXT_BYTES,
    ("fcw", "<u2", 0),
    ("mxcsr", "<u4", 24),
    ("flags", "<u8", 512),
    ("regs", "25<u8", 520),
    ("gdt_frames", "16<u8", 4832),
    ("gdt_ents", "<u8", 4960),
    ("kernel_ss", "<u8", 4968),
    ("kernel_sp", "<u8", 4976),
    ("ctrlreg", "8<u8", 4984),
    ("vm_assist", "<u8", 5136),
)
RBX, RCX, RDX, RIP, CS, RFLAGS, RSP, SS = 5, 11, 12, 16, 17, 18, 19, 20  # indices into regs

EXTENDED_BYTES = 128  # in a legacy stream
EXTENDED = np.dtype([("vcpu", "<u4"), ("size", "<u4"), ("entries", "<u8", 2), ("cs", "<u2", 2)])
EXTENDED_SIZE = 32  # struct xen_domctl_ext_vcpucontext of 3.2 - 4.1

IN_KERNEL, I387_VALID, ONLINE = 1 << 2, 1 << 0, 1 << 5  # VGCF_*
KERNEL_CS, KERNEL_DS = 0xE033, 0xE02B  # FLAT_KERNEL_CS64, FLAT_KERNEL_DS64
START_OF_KERNEL = 0xFFFFFFFF80000000
CR0, CR4 = 0x8005003B, 0x660


def opening(ram: layout.Ram) -> Iterator[Record]:
    """Yield what comes before memory."""
    place = layout.read_layout(ram)
    yield StreamStart(
        guest_type=GuestType.PV, format="legacy", tool_width=8, p2m_size=place.nr_pages
    )
    yield PvInfo(guest_width=8, pt_levels=4, context=_context(ram, 0).tobytes(), extended=True)
    frames = np.arange(layout.P2M_PFN, place.log_first, dtype=np.uint64)
    yield P2mFrames(0, place.nr_pages - 1, frames)


def closing(ram: layout.Ram) -> Iterator[Record]:
    """Yield what comes after memory, in the order of the legacy stream; the guest is stopped."""
    state = layout.view_state(ram)
    vcpus = int(state["vcpus"])
    yield TscInfo(
        mode=0,
        khz=1_000_000,
        nsec=int(float(state["running_s"]) * 1e9),
        incarnation=int(state["incarnation"]),
    )
    yield OnlineVcpus(vcpus - 1, tuple(range(vcpus)))
    yield LastCheckpoint()
    yield UnmappedPfns(np.zeros(0, np.uint64))
    for vcpu in range(vcpus):
        yield VcpuContext(vcpu, VcpuContextKind.BASIC, _context(ram, vcpu).tobytes())
        yield VcpuContext(vcpu, VcpuContextKind.EXTENDED, _extended(vcpu))
    yield SharedInfo(_shared_info(len(ram), vcpus))
    yield End()


def require_records(ram: layout.Ram, records: Iterable[Record]) -> None:
    """Check that `records` belong to the guest in `ram`, at the moment it was stopped.

    Raises:
        ValueError: they do not.
    """
    contexts = {}
    shared_info = False
    for record in records:
        match record:
            case PvInfo() if (record.guest_width, record.pt_levels) != (8, 4):
                raise ValueError(f"a {record.guest_width * 8}-bit guest, expected a 64-bit one")
            case VcpuContext(kind=VcpuContextKind.BASIC):
                contexts[record.vcpu_id] = record.blob
            case SharedInfo():
                shared_info = len(record.page) == PAGE_SIZE
    vcpus = int(layout.view_state(ram)["vcpus"])
    if sorted(contexts) != list(range(vcpus)) or not shared_info:
        raise ValueError(
            f"contexts of vcpus {sorted(contexts)} and {'a' if shared_info else 'no'} shared "
            f"info page, expected {vcpus} vcpus and one"
        )
    for vcpu, blob in contexts.items():
        if len(blob) != CONTEXT_BYTES:
            raise ValueError(f"vcpu {vcpu}: a context of {len(blob)} bytes, not {CONTEXT_BYTES}")
        _require_context(vcpu, _read_context(blob), _context(ram, vcpu))


def _require_context(vcpu: int, got: NDArray[np.void], expected: NDArray[np.void]) -> None:
    places = {"rbx": RBX, "rcx": RCX, "rdx": RDX}
    for name, index in places.items():
        if got["regs"][index] != expected["regs"][index]:
            raise ValueError(
                f"vcpu {vcpu}: {name} is {int(got['regs'][index]):#x}, "
                f"its memory says {int(expected['regs'][index]):#x}"
            )
    if got["ctrlreg"][3] != expected["ctrlreg"][3]:
        raise ValueError(f"vcpu {vcpu}: cr3 is {int(got['ctrlreg'][3]):#x}")


def _read_context(blob: bytes) -> NDArray[np.void]:
    return np.frombuffer(blob, CONTEXT).reshape(())


def _context(ram: layout.Ram, vcpu: int) -> NDArray[np.void]:
    """Return a vcpu_guest_context as the stream carries it: pfns in place of mfns."""
    context = np.zeros((), CONTEXT)
    context["fcw"], context["mxcsr"] = 0x37F, 0x1F80
    context["flags"] = IN_KERNEL | I387_VALID | ONLINE
    regs = context["regs"]
    regs[RIP], regs[CS] = START_OF_KERNEL, KERNEL_CS
    regs[RFLAGS], regs[SS] = 0x246, KERNEL_DS
    stack = START_OF_KERNEL + ((layout.STACK_PFN + 1) << PAGE_SHIFT)
    regs[RSP] = stack
    if vcpu == 0:
        regs[RBX], regs[RDX] = layout.STATE_PFN, layout.START_INFO_PFN
        regs[RCX] = layout.view_state(ram)["ticks"]
    context["gdt_frames"][0], context["gdt_ents"] = layout.GDT_PFN, layout.ENTRIES
    context["kernel_ss"], context["kernel_sp"] = KERNEL_DS, stack
    context["ctrlreg"][0], context["ctrlreg"][4] = CR0, CR4
    context["ctrlreg"][3] = layout.L4_PFN << PAGE_SHIFT
    return context


def _extended(vcpu: int) -> bytes:
    extended = np.zeros((), EXTENDED)
    extended["vcpu"], extended["size"] = vcpu, EXTENDED_SIZE
    return extended.tobytes().ljust(EXTENDED_BYTES, b"\0")


def _shared_info(nr_pages: int, vcpus: int) -> bytes:
    """Return the shared info page; its frame list list is 0, as every sender leaves it."""
    page = np.zeros(PAGE_SIZE, np.uint8)
    page[1 : 64 * vcpus : 64] = 1  # vcpu_info.evtchn_upcall_mask
    page[2560:3072] = 0xFF  # evtchn_mask
    page[3088:3096].view(np.uint64)[0] = nr_pages - 1  # arch.max_pfn
    return page.tobytes()
