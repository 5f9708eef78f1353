"""The commands of xm, as a table: what `help`, the parser, man pages and completion read.

Names, arguments and options are those of xm 4.4; the rows of the group "xendpy" are our own.
"""

from __future__ import annotations

from typing import Final

from xendpy.cli.domaincommands import DOMAIN_COMMANDS
from xendpy.cli.options import Command, Option

GLOBAL_OPTIONS: Final = (
    Option(long="root", metavar="DIR", help="Speak to the daemon whose paths lie below DIR"),
    Option(long="debug", help="Show a traceback for an unexpected error"),
)

EXIT_CODES: Final = (
    (0, "done"),
    (1, "it failed, or the command line is wrong; --help answers with 1 too, as it always did"),
    (3, "there is no domain of that name or id"),
    (4, "migrate: the guest is in doubt, or its migration goes on detached"),
    (130, "migrate: cancelled, and the guest runs here"),
)

ENVIRONMENT: Final = (
    ("XENDPY_ROOT", "directory below which all paths of the daemon lie, as --root"),
    ("XM_SERVER", "address of the daemon: httpu:///PATH, http://HOST:PORT or https://HOST:PORT"),
    ("XM_CONFIG_FILE", "file to read instead of /etc/xen/xm-config.xml"),
)

LONG_DEVICES = Option(short="l", long="long", help="Show the devices as s-expressions")

HOST_COMMANDS = (
    Command(
        name="debug-keys",
        args="<Keys>",
        help="Send debug keys to Xen.",
        group="host",
        count=(1, 1),
        rpc="xend.node.send_debug_keys",
    ),
    Command(
        name="dmesg",
        args="[-c|--clear]",
        help="Print or clear the hypervisor's message buffer.",
        group="host",
        count=(0, 1),
        options=(Option(short="c", long="clear", help="Clear the buffer after printing it"),),
        handler="host:dmesg",
    ),
    Command(
        name="info",
        args="[-c|--config] [-n|--numa]",
        help="Print what this host is.",
        group="host",
        count=(0, 1),
        options=(
            Option(short="c", long="config", help="List xend's options and their values"),
            Option(short="n", long="numa", help="With the NUMA topology"),
        ),
        handler="host:info",
    ),
    Command(
        name="log",
        args="",
        help="Print xend's log.",
        group="host",
        count=(0, 0),
        handler="host:log",
    ),
    Command(
        name="sched-credit",
        args="[-d <Domain> [-w[=WEIGHT]|-c[=CAP]]]",
        help="Get or set parameters of the credit scheduler.",
        group="scheduler",
        options=(
            Option(short="d", long="domain", metavar="DOMAIN", help="Domain to modify"),
            Option(short="w", long="weight", metavar="WEIGHT", help="Weight (int)"),
            Option(short="c", long="cap", metavar="CAP", help="Cap (int)"),
        ),
        handler="cpus:sched_credit",
    ),
    Command(
        name="block-list",
        args="<Domain> [--long]",
        help="List a domain's virtual block devices.",
        group="device",
        options=(LONG_DEVICES,),
        handler="devices:block_list",
    ),
    Command(
        name="network-list",
        args="<Domain> [--long]",
        help="List a domain's virtual network interfaces.",
        group="device",
        options=(LONG_DEVICES,),
        handler="devices:network_list",
    ),
)

OWN_COMMANDS = (
    Command(
        name="migrations",
        args="[show <ID> [--plot <File.svg>] | cancel <ID> | settle <ID> keep|discard [--yes]"
        " | discard <Name.partial>]",
        help="List migrations: running, ended, in doubt. Show one, cancel it, decide whose "
        "guest one in doubt is, or remove one that came in part.",
        group="xendpy",
        options=(
            Option(long="plot", metavar="FILE", help="Draw its iterations into an SVG file"),
            Option(long="yes", help="Settle without being asked"),
        ),
        handler="migrations:migrations",
        own=True,
    ),
    Command(
        name="inspect",
        args="<CheckpointFile> [options]",
        help="Show what a saved or relocated image contains; needs no daemon.",
        group="xendpy",
        offline="inspect",
        own=True,
    ),
    Command(
        name="extract",
        args="<CheckpointFile> <File> [options]",
        help="Write the memory of an image to a flat file; needs no daemon.",
        group="xendpy",
        offline="extract",
        own=True,
    ),
    Command(
        name="convert",
        args="<CheckpointFile> <File> [options]",
        help="Write a save file of a xend as one for xl restore, or back; needs no daemon.",
        group="xendpy",
        offline="convert",
        own=True,
    ),
)

HELP = Command(name="help", args="", help="Print this message.", group="help")

COMMANDS: Final = {row.name: row for row in DOMAIN_COMMANDS + HOST_COMMANDS + OWN_COMMANDS}

# Names of xm 2 and 3.0 that later releases still took, with a notice.
ALIASES: Final = {
    "balloon": "mem-set",
    "set-vcpus": "vcpu-set",
    "vif-list": "network-list",
    "vbd-list": "block-list",
}

# What `xm` alone shows, in xm 4.4's order.
COMMON: Final = """
console create new delete destroy dump-core help list mem-set migrate pause reboot reset restore
resume save shutdown start suspend top unpause uptime domstate vcpu-set
"""
