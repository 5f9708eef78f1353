"""What `xm inspect` says of an image: as data, and as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from xendpy import sxp
from xendpy.guest.domain import DomainConfig
from xendpy.guest.pages import PAGE_SIZE, PageType
from xendpy.migration.recording import Report
from xendpy.stream.sniff import FileKind

Facts = Mapping[str, Any]

_DEVICE_KEYS = ("bridge", "mac", "dev", "uname", "mode", "type", "location", "ip")


def summary(report: Report) -> dict[str, Any]:
    """Return all there is to say about an image, ready for JSON."""
    findings = report.findings
    return {
        "file": str(report.path),
        "size_bytes": report.size_bytes,
        "kind": report.kind.value,
        "config_bytes": len(report.config_bytes),
        "guest": _guest(report.config),
        "stream": _stream(report),
        "records": dict(findings.records),
        "pages_sent": {
            PageType(number).name: int(count)
            for number, count in enumerate(findings.sent_by_type)
            if count
        },
        "rounds": list(findings.round_pages),
        "vcpus": sorted(findings.vcpus),
        "memory": _memory(report),
        "whole": report.whole,
        "decoded_bytes": report.decoded_bytes,
        "anomalies": [
            {"offset": anomaly.offset, "text": anomaly.text} for anomaly in report.anomalies
        ],
    }


def _guest(config: DomainConfig | None) -> dict[str, Any] | None:
    if config is None:
        return None
    return {
        "name": config.name,
        "uuid": config.uuid,
        "type": config.guest_type.value,
        "vcpus": config.vcpus,
        "memory_mib": config.memory_mib,
        "maxmem_mib": config.maxmem_mib,
        "devices": [_device(kind, device) for kind, device in config.devices()],
    }


def _device(kind: str, device: sxp.SxpList) -> dict[str, str]:
    found = {"class": kind}
    for key in _DEVICE_KEYS:
        value = sxp.child_value(device, key)
        if isinstance(value, str) and value:
            found[key] = value
    return found


def _stream(report: Report) -> dict[str, Any] | None:
    start, pv = report.findings.start, report.findings.pv
    if start is None:
        return None
    stream: dict[str, Any] = {
        "format": start.format,
        "guest_type": start.guest_type.value,
        "tool_width": start.tool_width,
        "p2m_size": start.p2m_size,
    }
    if pv is not None:
        stream |= {
            "guest_width": pv.guest_width,
            "pt_levels": pv.pt_levels,
            "has_ext_info": pv.has_ext_info,
            "xsave_bytes": pv.xsave_bytes,
        }
    return stream


def _memory(report: Report) -> dict[str, Any] | None:
    """Return the memory as it was in the end; None if none of it can be read."""
    image = report.image
    if image is None:
        return None
    present = len(image.present)
    return {
        "present_pages": present,
        "bytes": present * PAGE_SIZE,
        "by_type": {kind.name: count for kind in PageType if (count := image.count_of(kind))},
        "sha256": image.sha256(),
    }


def tell_lines(facts: Facts) -> Iterator[str]:
    """Yield the report for a reader, a heading in the first column."""
    yield _line("File", f"{facts['file']}: {facts['kind']}, {facts['size_bytes']} bytes")
    stored = facts["kind"] == FileKind.STORED.value
    if facts["config_bytes"] and not stored:
        mark = "xl" if facts["kind"] == FileKind.XL.value else "LinuxGuestRecord"
        yield _line("Envelope", f"{mark}, {facts['config_bytes']} bytes of configuration")
    yield from _guest_lines(facts["guest"])
    yield from _stream_lines(facts["stream"])
    yield _line("Records", _counts(facts["records"]))
    yield _line("Pages sent", _counts(facts["pages_sent"]))
    rounds = facts["rounds"]
    yield _line(
        "Rounds", f"{len(rounds)}: {' + '.join(map(str, rounds))} pages" if rounds else "0"
    )
    yield from _memory_lines(facts["memory"])
    if stored:
        yield _line("End", "the image is whole" if facts["whole"] else "KEPT IN PART")
    elif facts["whole"]:
        yield _line("End", f"the image is whole, {facts['decoded_bytes']} bytes of stream")
    else:
        yield _line(
            "End",
            f"CUT OR BROKEN: readable up to byte {facts['decoded_bytes']}"
            f" of {facts['size_bytes']}",
        )
    for index, anomaly in enumerate(facts["anomalies"]):
        at = "" if anomaly["offset"] is None else f"at {anomaly['offset']:#x}: "
        yield _line("" if index else "Anomalies", at + anomaly["text"])
    if not facts["anomalies"]:
        yield _line("Anomalies", "none")


def _guest_lines(guest: Facts | None) -> Iterator[str]:
    if guest is None:
        return
    yield _line("Guest", f"{guest['name']}, {guest['type'].upper()}, uuid {guest['uuid']}")
    memory, maxmem = guest["memory_mib"], guest["maxmem_mib"]
    limit = f" (at most {maxmem})" if maxmem != memory else ""
    yield _line("", f"{guest['vcpus']} vcpus, {memory} MiB{limit}")
    for device in guest["devices"]:
        values = " ".join(f"{key}={device[key]}" for key in device if key != "class")
        yield _line("", f"{device['class']} {values}".rstrip())


def _stream_lines(stream: Facts | None) -> Iterator[str]:
    if stream is None:
        return
    guest = stream["guest_type"].upper()
    if "guest_width" in stream:
        guest += f", {stream['guest_width'] * 8}-bit, {stream['pt_levels']} page-table levels"
    tools = f"{stream['tool_width'] * 8}-bit tools"
    size = f"; p2m size {stream['p2m_size']}" if stream["p2m_size"] else ""
    yield _line("Stream", f"{stream['format']}, {tools}; {guest}{size}")


def _memory_lines(memory: Facts | None) -> Iterator[str]:
    if memory is None:
        return
    mib = memory["bytes"] / (1 << 20)
    yield _line("Memory", f"{memory['present_pages']} pages present, {mib:.1f} MiB")
    yield _line("", _counts(memory["by_type"]))
    yield _line("", f"sha256 {memory['sha256']}")


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"


def _line(heading: str, text: str) -> str:
    return f"{heading:<11}{text}".rstrip()
