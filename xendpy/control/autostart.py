"""Guests that start with the daemon or with the host, and what becomes of them when it stops.

Sources: XendDomain.autostart_domains and cleanup_domains, Xen 4.4 (managed domains with
`on_xend_start start`, `on_xend_stop shutdown|suspend`); the xendomains script, which ran at boot
(the links in /etc/xen/auto, created by `xm create`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from pathlib import Path

from xendpy.control.guests import Guests
from xendpy.errors import XendError
from xendpy.hypervisor.children import environment
from xendpy.hypervisor.durable import Durable
from xendpy.paths import Paths

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
CREATE_DEADLINE_S = 300.0
_CREATE = "import sys; from xendpy.cli.xm import main; sys.exit(main(sys.argv[1:]))"

log = logging.getLogger(__name__)


async def start_all(guests: Guests, paths: Paths, boot_id: str) -> None:
    """Start what is to start, one after the other; a failure stops nobody else.

    Managed domains start with the daemon, linked configurations with the host: each is tried once
    in the boot that `boot_id` names.
    """
    for config in guests.managed.all():
        if config.text("on_xend_start") != "start":
            continue
        try:
            if (await guests.get(config.uuid)).domid is None:
                await guests.start(config.uuid)
                log.info("domain %s started with the daemon", config.name)
        except XendError as error:
            log.warning("domain %s does not start with the daemon: %s", config.name, error)
    once = await guests.workers.quick(OncePerBoot, paths, boot_id)
    for file in once.files:
        await _create(file, paths)
        await guests.workers.quick(once.tried, file)


class OncePerBoot:
    """The linked configurations that this boot has still to start: all, at the daemon's first.

    One that has failed is an operator's by then: he may start its guest, and end it again. What is
    still to be tried is on disk before the first is: a daemon that is killed goes on where it was.
    """

    def __init__(self, paths: Paths, boot_id: str) -> None:
        self._durable = Durable()
        self._file = paths.state_dir / "autostart.json"
        self._boot_id = boot_id
        linked = [file for file in sorted(paths.auto_dir.glob("*")) if _is_linked(file)]
        left = self._left()
        self.files = [file for file in linked if left is None or file.name in left]
        self._names = [file.name for file in self.files]
        if left is None:
            self._write()

    def tried(self, file: Path) -> None:
        """Leave `file` out until the next boot."""
        self._names.remove(file.name)
        self._write()

    def _left(self) -> list[str] | None:
        """Return what an earlier daemon has left to start; None: none has run in this boot."""
        try:
            said = json.loads(self._file.read_bytes())
            left = [str(name) for name in said["left"]]
            return left if self._boot_id and said["boot_id"] == self._boot_id else None
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s is not understood: %r", self._file, error)
            return None

    def _write(self) -> None:
        said = {"boot_id": self._boot_id, "left": self._names}
        try:
            self._durable.mkdir(self._file.parent)
            self._durable.write_file(self._file, json.dumps(said).encode())
        except OSError as error:
            log.warning("guests may be started again by the next daemon: %s", error)


def _is_linked(file: Path) -> bool:
    return not file.name.startswith(".") and file.is_file()


def this_boot() -> str:
    """Return what the kernel calls the time since the host was booted; empty if it does not."""
    try:
        return BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


async def stop_all(guests: Guests) -> None:
    """Do what `on_xend_stop` says to the managed domains that run."""
    for config in guests.managed.all():
        action = config.text("on_xend_stop", "ignore")
        if action not in ("shutdown", "suspend"):
            continue
        try:
            if (await guests.get(config.uuid)).domid is None:
                continue
            if action == "shutdown":
                await guests.shutdown(config.uuid, "poweroff")
            else:
                await guests.suspend(config.uuid)
            log.info("domain %s: %s with the daemon", config.name, action)
        except XendError as error:
            log.warning("domain %s: no %s with the daemon: %s", config.name, action, error)


async def _create(file: Path, paths: Paths) -> None:
    """Have `xm create` read a configuration file and ask this daemon for the guest."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-c", _CREATE,
        "--root", str(paths.root), "create", "--autostart", str(file),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        cwd="/",
        env=environment(),
    )  # fmt: skip
    try:
        async with asyncio.timeout(CREATE_DEADLINE_S):
            _, said = await process.communicate()
    except TimeoutError:
        log.warning("%s does not start: no answer within %g s", file, CREATE_DEADLINE_S)
        return
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    text = " ".join(said.decode("utf-8", "replace").split())
    if process.returncode == 0:
        log.info("%s: guest created", file)
    elif "already exists" in text:
        log.info("%s: its guest is here already", file)
    else:
        log.warning("%s does not start: %s", file, text)
