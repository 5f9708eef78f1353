"""Let a guest go on that xl left suspended, as xl itself does after a failed migration.

xl has no verb for it, libxl has the call: libxl_domain_resume (libxl.h; since Xen 4.3 with these
arguments). Run as a program, for a hypercall that hangs or a library that ends the process must
not take the daemon along; so nothing of xendpy is imported here.

    python xlresume.py DOMID
"""

from __future__ import annotations

import ctypes
import glob
import re
import sys
from collections.abc import Sequence

LIBRARIES = (
    "/usr/lib/*/libxenlight.so.*",
    "/usr/lib64/libxenlight.so.*",
    "/usr/lib/libxenlight.so.*",
    "/usr/local/lib*/libxenlight.so.*",
)
LOG_LIBRARY = "libxentoollog.so.1"
LIBXL_VERSION = 0  # libxl.h
XTL_WARN = 7  # xentoollog.h
# The suspend request returns to the guest as cancelled: it need not connect its devices again.
SUSPEND_CANCEL = 1


def versions(paths: Sequence[str]) -> list[str]:
    """Return the libraries by release, newest first."""
    found = [(path, re.search(r"\.so\.(\d+)\.(\d+)$", path)) for path in paths]
    known = [(int(match[1]), int(match[2]), path) for path, match in found if match]
    return [path for _major, _minor, path in sorted(known, reverse=True)]


def resume(domid: int) -> str:
    """Resume a guest; return what is wrong, nothing after a success."""
    libraries = versions([path for pattern in LIBRARIES for path in glob.glob(pattern)])
    if not libraries:
        return "libxenlight is not installed"
    said = ""
    for path in libraries:  # a hypervisor takes the calls of its own release alone
        said = _resume_with(ctypes.CDLL(path), domid)
        if not said:
            break
    return said


def _resume_with(libxl: ctypes.CDLL, domid: int) -> str:
    logs = ctypes.CDLL(LOG_LIBRARY)
    logs.xtl_createlogger_stdiostream.restype = ctypes.c_void_p
    stderr = ctypes.c_void_p.in_dll(ctypes.CDLL(None), "stderr")
    logger = logs.xtl_createlogger_stdiostream(stderr, XTL_WARN, 0)
    context = ctypes.c_void_p()
    status = libxl.libxl_ctx_alloc(
        ctypes.byref(context), LIBXL_VERSION, 0, ctypes.c_void_p(logger)
    )
    if status:
        return f"libxl_ctx_alloc: {status}"
    try:
        status = libxl.libxl_domain_resume(
            context, ctypes.c_uint32(domid), SUSPEND_CANCEL, ctypes.c_void_p()
        )
    finally:
        libxl.libxl_ctx_free(context)
    return f"libxl_domain_resume: {status}" if status else ""


if __name__ == "__main__":
    sys.exit(resume(int(sys.argv[1])) or 0)
