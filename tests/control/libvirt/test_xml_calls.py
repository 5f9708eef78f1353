"""Configurations that a client has translated."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.control.fakes import guest_config
from tests.control.libvirt.client import Client
from xendpy.control.libvirt import xml_calls
from xendpy.control.libvirt.wire import Code, Status
from xendpy.control.libvirt.xdr import Reader, Writer
from xendpy.control.libvirt.xml_calls import MAX_NATIVE

GET_XML, FROM_NATIVE, TO_NATIVE = 14, 135, 136


def asked(text: str) -> bytes:
    return Writer().string("xen-sxpr").string(text).u32(0).data()


async def test_translation_keeps_nobody_waiting(
    sockets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []

    def new_config(value: object) -> object:
        threads.append(threading.current_thread().name)
        return told(value)

    told = xml_calls.new_config
    monkeypatch.setattr(xml_calls, "new_config", new_config)
    client = await (await Client.connect(sockets)).opened()
    native = guest_config("web1").encode().decode()
    answer = await client.call(FROM_NATIVE, asked(native))
    assert answer.status == Status.OK
    xml = Reader(answer.body).string()
    answer = await client.call(TO_NATIVE, asked(xml))
    assert "(name web1)" in Reader(answer.body).string()
    client.close()
    assert [name.partition("_")[0] for name in threads] == ["control", "control"]


async def test_too_large_a_configuration_is_refused(sockets: Path) -> None:
    client = await (await Client.connect(sockets)).opened()
    answer = await client.call(FROM_NATIVE, asked("(" * (MAX_NATIVE + 1)))
    assert (answer.status, Reader(answer.body).i32()) == (Status.ERROR, Code.INVALID_ARG)
    client.close()


@pytest.mark.parametrize("procedure", [FROM_NATIVE, TO_NATIVE])
async def test_who_may_only_look_has_nothing_translated(sockets: Path, procedure: int) -> None:
    client = await (await Client.connect(sockets, "virtxend-sock-ro")).opened()
    answer = await client.call(procedure, asked("(vm)"))
    assert (answer.status, Reader(answer.body).i32()) == (Status.ERROR, Code.OPERATION_DENIED)
    assert (await client.call(GET_XML, Writer().domain(
        "web1", guest_config("web1").uuid, 1).u32(0).data())).status == Status.OK  # fmt: skip
    client.close()
