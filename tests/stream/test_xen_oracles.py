"""What we write, judged by Xen's own tools, and compared with them byte for byte.

They are looked for in $XENDPY_XEN_TOOLS, the directory that holds `bin/verify-stream-v2` and
`lib/python`, and where Debian's xen-utils-4.17 has them. Outside a Xen host, `dpkg -x` of that
package does.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests import modern, recorded, streams
from tests.drive import Recorder, drive_bytes
from xendpy.guest.domain import GuestType
from xendpy.stream import libxl
from xendpy.stream.convert import to_modern
from xendpy.stream.legacy_dialect import LATEST_XEND
from xendpy.stream.legacy_encode import LegacyEncoder
from xendpy.stream.libxc_encode import LibxcEncoder
from xendpy.stream.libxl import LibxlEncoder, encode_xl_header, read_xl_header
from xendpy.stream.xend import decode_body

TOOLS = Path(os.environ.get("XENDPY_XEN_TOOLS", "/usr/lib/xen-4.17"))
pytestmark = pytest.mark.skipif(
    not (TOOLS / "bin" / "verify-stream-v2").exists(),
    reason=f"no verify-stream-v2 in {TOOLS}/bin; set XENDPY_XEN_TOOLS",
)


def run(tool: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(TOOLS / "bin" / tool), *arguments],
        env={**os.environ, "PYTHONPATH": str(TOOLS / "lib" / "python")},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def verify(wire: bytes, format: str, tmp_path: Path) -> None:
    path = tmp_path / "verify"
    path.write_bytes(wire)
    result = run("verify-stream-v2", "-f", format, "-i", str(path))
    assert result.returncode == 0, result.stderr


def convert(image: bytes, guest: GuestType, format: str, width: int, tmp_path: Path) -> bytes:
    source, target = tmp_path / "v1", tmp_path / "v2"
    source.write_bytes(image)
    options = ["-w", str(8 * width), "-g", str(guest), "-f", format]
    result = run("convert-legacy-stream", "-i", str(source), "-o", str(target), *options)
    assert result.returncode == 0, result.stderr
    return target.read_bytes()


def modernize(image: bytes, guest: GuestType, encoder: LibxcEncoder | LibxlEncoder) -> bytes:
    data = bytearray()

    def write(pieces: Iterable[bytes | memoryview]) -> None:
        for piece in pieces:
            data.extend(piece)

    drive_bytes(decode_body(guest), image, to_modern(encoder, write))
    return bytes(data)


@pytest.mark.parametrize("name", recorded.ALL)
def test_recorded_streams_pass(name: str, tmp_path: Path) -> None:
    guest = GuestType(recorded.load(name)[1]["kind"])
    encoder = LibxlEncoder(guest, is_converted=True)
    verify(modernize(recorded.image(name), guest, encoder), "libxl", tmp_path)


@pytest.mark.parametrize("width", [4, 8])
@pytest.mark.parametrize("name", [recorded.PV64, recorded.PV32])
def test_pv_is_converted_byte_for_byte_as_xen_does(name: str, width: int, tmp_path: Path) -> None:
    recorder = Recorder()
    drive_bytes(decode_body(GuestType.PV), recorded.image(name), recorder)
    legacy = LegacyEncoder(LATEST_XEND, GuestType.PV, width)
    narrow = b"".join(piece for item in recorder.records for piece in legacy.encode(item))
    image = recorded.image(name) if width == 8 else narrow
    ours = modernize(image, GuestType.PV, LibxcEncoder(GuestType.PV))
    assert ours == convert(image, GuestType.PV, "libxc", width, tmp_path)


@pytest.mark.parametrize("width", [4, 8])
def test_hvm_is_converted_byte_for_byte_as_xen_does(width: int, tmp_path: Path) -> None:
    recorder = Recorder()
    drive_bytes(decode_body(GuestType.HVM), recorded.image(recorded.HVM), recorder)
    legacy = LegacyEncoder(LATEST_XEND, GuestType.HVM, width)
    image = b"".join(piece for item in recorder.records for piece in legacy.encode(item))
    # Xen's converter takes libxl's record alone; xend's is the same blob without a length.
    at = image.rindex(b"QemuDeviceModelRecord")
    image = image[:at] + streams.qemu_record(image[at + 21 :], b"DeviceModelRecord0002")
    ours = modernize(image, GuestType.HVM, LibxlEncoder(GuestType.HVM, is_converted=True))
    assert ours == convert(image, GuestType.HVM, "libxl", width, tmp_path)


@pytest.mark.parametrize("name", [recorded.XL_PV, recorded.XL_PVH])
def test_real_save_files_encoded_again_pass(name: str, tmp_path: Path) -> None:
    wire, recorder = recorded.xl_save(name), Recorder()
    verify(wire, "xl", tmp_path)
    header, taken = drive_bytes(read_xl_header(), wire, recorder)
    drive_bytes(libxl.decode(), wire[taken:], recorder)
    encoder = LibxlEncoder(recorder.records[0].guest_type, is_converted=False)  # type: ignore[union-attr]
    again = b"".join(piece for item in recorder.records for piece in encoder.encode(item))
    verify(encode_xl_header(header) + again, "xl", tmp_path)


@pytest.mark.parametrize("release", streams.RELEASES)
@pytest.mark.parametrize("width", [4, 8])
def test_every_release_converted_passes(release: str, width: int, tmp_path: Path) -> None:
    pv = streams.pv_image(release=release, width=width, guest_width=width)
    encoder = LibxlEncoder(GuestType.PV, is_converted=True)
    verify(modernize(pv.wire, GuestType.PV, encoder), "libxl", tmp_path)
    if release != "3.0":
        hvm = streams.hvm_image(release=release, width=width)
        encoder = LibxlEncoder(GuestType.HVM, is_converted=True)
        verify(modernize(hvm.wire, GuestType.HVM, encoder), "libxl", tmp_path)


@pytest.mark.parametrize("version", [2, 3])
def test_builder_of_images_passes(version: int, tmp_path: Path) -> None:
    verify(modern.pv_image(version=version), "libxc", tmp_path)
    verify(modern.libxl_stream(modern.hvm_image(), modern.emulator(3, b"s")), "libxl", tmp_path)
