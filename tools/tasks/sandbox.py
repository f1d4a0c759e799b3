"""Shut the calling process off from files, network and other processes, for good and without any privilege.

Files, signals and root's powers are what tools/jobs/landlock.py takes away; this adds the system calls that Landlock
does not cover, by seccomp (https://docs.kernel.org/userspace-api/seccomp_filter.html), and raises where the machine
cannot do it all. Whatever the process starts later is as restricted as itself. Needs the standard library only.

What stays possible: reading the clock, the names and sizes of files (`stat`), and everything that was opened before.
Memory, time and the size of files are limited by rlimits, which are the caller's to set.
"""

import ctypes
import errno
import os
import platform
import site
import sys
from pathlib import Path

from tools.jobs import landlock

_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT = 0x40000000

_NETWORK = {"socket": (41, 198)}
_ALWAYS = {"io_uring_setup": (425, 425)}  # its requests pass no filter
_PROCESSES = {
    "fork": (57, None), "vfork": (58, None), "clone": (56, 220), "clone3": (435, 435),
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "pidfd_send_signal": (424, 424),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "setpgid": (109, 154), "setsid": (112, 157),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
}  # fmt: skip
_METADATA = {
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
    "utime": (132, None), "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "setxattrat": (463, 463),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16), "removexattrat": (466, 466),
    "file_setattr": (469, 469), "truncate": (76, 45),
}  # fmt: skip
"""Changes of files by path that Landlock (truncate: before its version 3) does not see."""


UNSANDBOXED_CURE = "the scorer's option unsandboxed=true runs untrusted code without that protection"


class SandboxError(RuntimeError):
    """This machine cannot restrict a process; the text says what is missing."""


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("yes", ctypes.c_uint8), ("no", ctypes.c_uint8), ("value", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("instructions", ctypes.POINTER(_Instruction)))


def restrict(read: list[Path], write: list[Path], network: bool, processes: bool = True) -> None:
    """Leave this process, for the rest of its life, these files and folders only (with what is below a folder).

    read: may be read, listed and executed; write: may be changed as well (/dev/null always may), but gets no symbolic
    links or devices. Nothing to write also means that modes, owners and times of files cannot be changed. network
    False: no new socket of any kind; open ones go on working. processes False: no new process or thread, no signal to
    any process. Where processes are allowed, signals reach only what this process started, but before Linux 6.12 every
    process of the same user.

    Call it before the process starts threads. Raises SandboxError where the machine cannot do all of this, and
    FileNotFoundError for a path that does not exist; the process may be restricted in part then and should end.
    """
    problem = unsupported()
    if problem:
        raise SandboxError(problem)
    if _num_threads() > 1:
        raise SandboxError("a process is restricted before it starts threads: those that run stay free")
    denied = _ALWAYS | ({} if network else _NETWORK) | ({} if processes else _PROCESSES) | ({} if write else _METADATA)
    for path in (*read, *write):
        path.stat()  # raises for what Landlock would leave out
    try:
        landlock.confine(read, [*write, Path(os.devnull)], strict=True)
        _filter_calls(denied)
    except OSError as error:
        raise SandboxError(str(error)) from error


def unsupported() -> str | None:
    """Return why this machine cannot restrict a process, None when it can."""
    if landlock.interface() == 0:
        return (
            "this machine cannot shut a process off from files: it has no Landlock (Linux 5.13 or later, with"
            " 'landlock' among the kernel's security modules)"
        )
    if platform.machine() not in _AUDIT_ARCH:
        return f"this machine cannot filter system calls: their numbers on {platform.machine()} are not known here"
    return None


def python_paths() -> list[Path]:
    """Return what must be readable to run this python with its installed packages; only what exists."""
    prefixes = {Path(sys.prefix), Path(sys.base_prefix)}
    libraries = [prefix / name for prefix in prefixes for name in ("lib", "lib64", "pyvenv.cfg")]
    system = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share/zoneinfo", "/etc/ld.so.cache"]
    user_packages = Path(site.getusersitepackages())
    candidates = [*libraries, *map(Path, system), user_packages, Path(sys.executable).resolve()]
    return [path for path in candidates if os.path.exists(path)]  # a parent may be closed to this user


def _num_threads() -> int:
    try:
        return len(os.listdir("/proc/self/task"))
    except PermissionError:  # an earlier restriction hides /proc, and that one saw no threads
        return 1


def _filter_calls(denied: dict[str, tuple[int, int | None]]) -> None:
    """Let the denied system calls fail with EPERM, and all of a foreign calling convention."""
    machine = platform.machine()
    column = list(_AUDIT_ARCH).index(machine)
    numbers = [pair[column] for pair in denied.values()]
    load, equal, at_least, end = 0x20, 0x15, 0x35, 0x06
    refuse, allow = 0x00050000 | errno.EPERM, 0x7FFF0000
    lines = [
        (load, 0, 0, 4),  # seccomp_data.arch
        (equal, 1, 0, _AUDIT_ARCH[machine]),
        (end, 0, 0, refuse),
        (load, 0, 0, 0),  # seccomp_data.nr
        (at_least, 0, 1, _X32_BIT),
        (end, 0, 0, refuse),
    ]
    for number in numbers:
        if number is not None:
            lines += [(equal, 0, 1, number), (end, 0, 0, refuse)]
    lines.append((end, 0, 0, allow))
    instructions = (_Instruction * len(lines))(*(_Instruction(*line) for line in lines))
    program = _Program(len(lines), instructions)
    landlock.call("prctl", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0)
