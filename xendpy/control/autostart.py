"""Guests that start with the daemon, and what becomes of them when it stops.

Sources: XendDomain.autostart_domains and cleanup_domains, Xen 4.4 (managed domains with
`on_xend_start start`, `on_xend_stop shutdown|suspend`); the xendomains script (the links in
/etc/xen/auto, created by `xm create`).
"""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path

from xendpy.control.guests import Guests
from xendpy.errors import XendError
from xendpy.hypervisor.children import environment
from xendpy.paths import Paths

CREATE_DEADLINE_S = 300.0
_CREATE = "import sys; from xendpy.cli.xm import main; sys.exit(main(sys.argv[1:]))"

log = logging.getLogger(__name__)


async def start_all(guests: Guests, paths: Paths) -> None:
    """Start what is to start with the daemon, one after the other; a failure stops nobody else."""
    for config in guests.managed.all():
        if config.text("on_xend_start") != "start":
            continue
        try:
            if (await guests.get(config.uuid)).domid is None:
                await guests.start(config.uuid)
                log.info("domain %s started with the daemon", config.name)
        except XendError as error:
            log.warning("domain %s does not start with the daemon: %s", config.name, error)
    for file in sorted(paths.auto_dir.glob("*")):
        if not file.name.startswith(".") and file.is_file():
            await _create(file, paths)


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
