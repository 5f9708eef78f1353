"""The variables of a domain's configuration file, as data: name, kind, default, meaning.

Names and defaults are those of create.py of xm 4.4; the meanings are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Variable:
    """One variable; on the command line `kind` says how its text is read.

    Kinds: `text`, `int`, `flag` (no or yes), `list` (may be repeated).
    """

    name: str
    kind: str
    default: Any
    metavar: str
    help: str


_ON = "destroy|restart|preserve|rename-restart"

# fmt: off
VARIABLES: Final = (
    Variable("name", "text", None, "NAME", "Name of the domain; unique on this host"),
    Variable("uuid", "text", None, "UUID", "Identity of the domain; random if not given"),
    Variable("description", "text", "", "TEXT", "Description"),
    Variable("builder", "text", "linux", "linux|hvm", "Kind of guest"),
    Variable("bootloader", "text", None, "FILE", "Program that fetches the kernel, as pygrub"),
    Variable("bootargs", "text", None, "ARGS", "Arguments of the boot loader"),
    Variable("kernel", "text", None, "FILE", "Kernel image, or hvmloader"),
    Variable("ramdisk", "text", "", "FILE", "Initial RAM disk"),
    Variable("loader", "text", "", "FILE", "Firmware of an HVM guest"),
    Variable("features", "text", "", "FEATURES", "Features to switch on in the guest's kernel"),
    Variable("root", "text", "", "DEVICE", "root= of the kernel's command line"),
    Variable("extra", "text", "", "ARGS", "More of the kernel's command line"),
    Variable("ip", "text", "", "IPADDR", "The kernel's own IP address"),
    Variable("gateway", "text", "", "IPADDR", "The kernel's gateway"),
    Variable("netmask", "text", "", "MASK", "The kernel's netmask"),
    Variable("hostname", "text", "", "NAME", "The kernel's host name"),
    Variable("interface", "text", "eth0", "NAME", "Interface that gets that address"),
    Variable("dhcp", "text", "off", "off|dhcp", "Let the kernel ask DHCP"),
    Variable("nfs_server", "text", None, "IPADDR", "NFS server of the root directory"),
    Variable("nfs_root", "text", None, "PATH", "Root directory there"),
    Variable("memory", "int", 128, "MIB", "Memory"),
    Variable("maxmem", "int", None, "MIB", "Most memory it may ever have"),
    Variable("shadow_memory", "int", 0, "MIB", "Shadow memory"),
    Variable("memory_sharing", "flag", 0, "no|yes", "Share memory"),
    Variable("vcpus", "int", 1, "N", "VCPUs"),
    Variable("maxvcpus", "int", None, "N", "Most VCPUs it may ever have"),
    Variable("cpu", "int", None, "CPU", "CPU of the first VCPU"),
    Variable("cpus", "text", None, "CPUS", "CPUs it may use: 0-3,^1"),
    Variable("cpu_cap", "int", None, "PERCENT", "Most CPU time it gets"),
    Variable("cpu_weight", "int", None, "WEIGHT", "Share of CPU time"),
    Variable("pool", "text", None, "NAME", "CPU pool"),
    Variable("cpuid", "list", (), "IN[,SIN]:eax=EAX,...", "What cpuid shows"),
    Variable("cpuid_check", "list", (), "IN[,SIN]:eax=EAX,...", "What cpuid must show"),
    Variable("on_poweroff", "text", None, _ON, "What to do when it shuts down"),
    Variable("on_reboot", "text", None, _ON, "What to do when it reboots"),
    Variable("on_crash", "text", None, _ON + "|coredump-destroy|coredump-restart",
             "What to do when it crashes"),
    Variable("restart", "text", None, "onreboot|always|never", "Deprecated; see on_reboot"),
    Variable("on_xend_start", "text", "ignore", "ignore|start", "What to do when xend starts"),
    Variable("on_xend_stop", "text", "ignore", "ignore|shutdown|suspend",
             "What to do when xend stops"),
    Variable("disk", "list", (), "phy:DEV,VDEV,MODE[,DOM]", "A disk"),
    Variable("vif", "list", (), "mac=MAC,bridge=BRIDGE,...", "A network interface"),
    Variable("vif2", "list", (), "front_mac=MAC,bridge=BRIDGE,...", "A netchannel2 interface"),
    Variable("nics", "int", -1, "N", "Deprecated; use empty vif entries"),
    Variable("vfb", "list", (), "vnc=1,vnclisten=ADDR,...", "A frame buffer"),
    Variable("vtpm", "list", (), "instance=N,backend=DOM", "A TPM"),
    Variable("pci", "list", (), "BUS:DEV.FUNC", "A PCI device to pass through"),
    Variable("ioports", "list", (), "FROM[-TO]", "Legacy I/O ports, in hexadecimal"),
    Variable("irq", "list", (), "IRQ", "An interrupt line"),
    Variable("vscsi", "list", (), "PDEV,VDEV[,DOM]", "Not supported"),
    Variable("vusb", "list", (), "usbver=N,...", "Not supported"),
    Variable("access_control", "list", (), "policy=P,label=L", "Not supported"),
    Variable("blkif", "flag", 0, "no|yes", "A backend of block devices"),
    Variable("netif", "flag", 0, "no|yes", "A backend of network interfaces"),
    Variable("tpmif", "flag", 0, "no|yes", "A backend of TPMs"),
    Variable("localtime", "flag", 0, "no|yes", "The clock shows local time"),
    Variable("rtc_timeoffset", "int", 0, "SECONDS", "Offset of the clock"),
    Variable("tsc_mode", "int", 0, "0-3", "Time stamp counter: default, emulated, native, PV"),
    Variable("nomigrate", "int", 0, "0|1", "Never migrate it"),
    Variable("target", "int", 0, "DOMID", "Domain that this one serves"),
    Variable("oos", "int", 1, "0|1", "Out-of-sync shadow pages"),
    Variable("s3_integrity", "int", 1, "0|1", "Check memory over S3"),
    Variable("superpages", "int", 0, "0|1", "Use superpages"),
    Variable("machine_address_size", "int", None, "BITS", "Width of machine addresses"),
    Variable("suppress_spurious_page_faults", "flag", None, "no|yes", "As named"),
    Variable("vhpt", "int", 0, "LOG2", "IA64 only"),
    Variable("videoram", "int", 4, "MIB", "Memory of the frame buffer"),
    Variable("parallel", "text", "", "FILE", "Parallel port"),
    Variable("serial", "text", "", "FILE", "Serial port"),
    Variable("monitor", "flag", 0, "no|yes", "Monitor of the device model"),
    Variable("monitor_path", "text", "", "FILE", "Where that monitor is"),
    Variable("boot", "text", "c", "a|b|c|d", "HVM: boot device"),
    Variable("acpi", "int", 1, "0|1", "HVM: ACPI"),
    Variable("apic", "int", 1, "0|1", "HVM: APIC"),
    Variable("pae", "int", 1, "0|1", "HVM: PAE"),
    Variable("hap", "int", 1, "0|1", "HVM: hardware assisted paging"),
    Variable("hpet", "int", 0, "0|1", "HVM: HPET"),
    Variable("nestedhvm", "int", 0, "0|1", "HVM: nested virtualization"),
    Variable("viridian", "int", 0, "0|1", "HVM: Viridian interface"),
    Variable("extid", "int", 0, "0|1", "HVM: older name of viridian"),
    Variable("timer_mode", "int", 1, "0|1", "HVM: timer mode"),
    Variable("vpt_align", "int", 1, "0|1", "HVM: align periodic timers"),
    Variable("isa", "flag", 0, "no|yes", "HVM: ISA only"),
    Variable("stdvga", "flag", 0, "no|yes", "HVM: standard VGA"),
    Variable("nographic", "flag", 0, "no|yes", "HVM: no graphics"),
    Variable("soundhw", "text", "", "DEVICE", "HVM: sound card"),
    Variable("usb", "flag", 0, "no|yes", "HVM: USB"),
    Variable("usbdevice", "text", "", "NAME", "HVM: USB device"),
    Variable("keymap", "text", "", "NAME", "HVM: keyboard layout"),
    Variable("guest_os_type", "text", "default", "NAME", "HVM: guest system"),
    Variable("device_model", "text", None, "FILE", "HVM: device model"),
    Variable("fda", "text", "", "FILE", "HVM: first floppy"),
    Variable("fdb", "text", "", "FILE", "HVM: second floppy"),
    Variable("vnc", "text", None, "0|1", "HVM: VNC server"),
    Variable("vncdisplay", "text", None, "N", "HVM: VNC display"),
    Variable("vnclisten", "text", None, "IPADDR", "HVM: VNC address"),
    Variable("vncunused", "flag", 1, "no|yes", "HVM: any free VNC port"),
    Variable("vncpasswd", "text", None, "PASSWORD", "HVM: VNC password"),
    Variable("vncconsole", "flag", None, "no|yes", "HVM: start a VNC viewer"),
    Variable("sdl", "text", None, "0|1", "HVM: SDL window"),
    Variable("opengl", "text", None, "0|1", "HVM: OpenGL"),
    Variable("display", "text", None, "DISPLAY", "HVM: X display"),
    Variable("xauthority", "text", None, "FILE", "HVM: X authority file"),
    Variable("gfx_passthru", "text", None, "0|1", "HVM: pass the graphics card through"),
    Variable("watchdog", "text", "", "ib700|i6300esb", "HVM: watchdog"),
    Variable("watchdog_action", "text", "reset", "reset|shutdown|...", "HVM: when it bites"),
    Variable("xen_platform_pci", "int", 1, "0|1", "HVM: Xen's platform device"),
    Variable("pci_msitranslate", "int", 1, "0|1", "HVM: translate MSI"),
    Variable("pci_power_mgmt", "int", 0, "0|1", "HVM: PCI power management"),
    Variable("actmem", "text", "0", "PAGES", "HVM: pages to swap"),
    Variable("xenpaging_file", "text", None, "FILE", "HVM: paging file"),
    Variable("xenpaging_extra", "list", (), "ARGS", "HVM: arguments of xenpaging"),
    Variable("smbios_firmware", "text", None, "FILE", "HVM: more SMBIOS tables"),
    Variable("acpi_firmware", "text", None, "FILE", "HVM: more ACPI tables"),
)
# fmt: on

BY_NAME: Final = {row.name: row for row in VARIABLES}
