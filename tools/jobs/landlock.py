"""Locks the calling process, and all that it starts, out of every file but those it is granted (Linux Landlock).

The kernel enforces it, for root too: paths, symbolic and hard links, /proc/<pid>/{mem,fd,root} and ptrace of processes
outside, mounts. It cannot be undone. See https://docs.kernel.org/userspace-api/landlock.html.
"""

import ctypes
import os
import site
import stat
import sys
from collections.abc import Iterable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446  # the same on all architectures
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_DIR, _REMOVE_FILE = (1 << bit for bit in range(6))
_MAKE_DIR, _MAKE_REG, _MAKE_SOCK, _MAKE_FIFO = 1 << 7, 1 << 8, 1 << 9, 1 << 10
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_RIGHTS_OF_ABI = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""Version of the kernel's interface -> how many of the rights it knows."""
_READ = _EXECUTE | _READ_FILE | _READ_DIR
# Without the rights to make symbolic links and device files: who reads the folders later is not led astray.
_WRITE = _READ | _WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _MAKE_SOCK | _MAKE_FIFO
_WRITE |= _REFER | _TRUNCATE | _IOCTL_DEV
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_SCOPES = 0b11
"""No signals to and no abstract sockets of processes outside (kernel interface 6)."""

_SYSTEM = ("usr", "lib", "lib32", "lib64", "bin", "sbin", "etc", "opt", "nix", "proc", "sys")
_DEVICES = ("null", "zero", "full", "random", "urandom", "shm", "dri", "kfd", "nvidia*")
_CHOWN, _DAC_OVERRIDE, _FOWNER = 1 << 0, 1 << 1, 1 << 3  # capabilities over files of other owners


def interface() -> int:
    """Return the version of Landlock that the kernel offers; 0 = none (another system, an old or a closed kernel)."""
    if sys.platform != "linux":
        return 0
    try:
        return call("syscall", _CREATE, None, 0, 1)
    except OSError:
        return 0


def confine(read: Iterable[Path], write: Iterable[Path], strict: bool = False) -> bool:
    """From now on this process can only read and execute below `read`, and read and write below `write`.

    Names of folders' entries stay visible everywhere, contents do not; strict: no other folder can be listed, and root
    can no longer change the owner of a file or the mode of another user's. Paths that do not exist are left out. Call
    it before the first thread starts. Returns False, and changes nothing, where there is no Landlock; raises OSError
    when the kernel refuses.
    """
    version = interface()
    if version == 0:
        return False
    handled = (1 << _RIGHTS_OF_ABI.get(version, 16)) - 1
    attributes = (ctypes.c_uint64 * 3)(handled, 0, _SCOPES)
    ruleset = call("syscall", _CREATE, ctypes.byref(attributes), 24 if version >= 6 else 8, 0)
    try:
        if not strict:
            _grant(ruleset, Path("/"), _READ_DIR)  # python looks for modules by listing folders
        for rights, paths in ((_READ, read), (_WRITE, write)):
            for path in paths:
                _grant(ruleset, path, rights & handled)
        _drop_privileges(_DAC_OVERRIDE if strict else _CHOWN | _DAC_OVERRIDE | _FOWNER)
        call("syscall", _RESTRICT, ruleset, 0)
    finally:
        os.close(ruleset)
    return True


def program_paths() -> list[Path]:
    """Return what python code needs to read: the interpreter, its packages, this program, the system, GPU libraries."""
    places: list[str | Path] = [*(f"/{name}" for name in _SYSTEM), Path("/etc/resolv.conf").resolve()]
    places += [REPOSITORY, sys.prefix, sys.base_prefix, *sys.path, site.getusersitepackages()]
    places.append(os.path.expanduser("~/.cache"))
    return [Path(place) for place in places if place]


def devices() -> list[Path]:
    """Return the harmless devices and the GPUs. No disks: they hold every file."""
    return [path for name in _DEVICES for path in Path("/dev").glob(name)]


def outside(roots: Iterable[Path], closed: Iterable[Path]) -> list[Path]:
    """Return paths that together hold everything below `roots` and nothing below `closed`.

    Landlock can only grant whole folders, so a folder with something closed in it is replaced by its entries.
    """
    shut = {path.resolve() for path in closed}
    found: list[Path] = []
    for root in dict.fromkeys(path.resolve() for path in roots):
        if any(root.is_relative_to(path) for path in shut):
            continue
        if not any(path.is_relative_to(root) for path in shut):
            found.append(root)
            continue
        entries = [entry for entry in root.iterdir() if not entry.is_symlink()]
        links = [entry.resolve() for entry in root.iterdir() if entry.is_symlink()]
        # A link to a folder that leads back here would never end.
        entries += [link for link in links if not any(path.is_relative_to(link) for path in shut)]
        found += outside(entries, shut)
    return found


def call(function: str, *arguments: object) -> int:
    """Call a C function of the system. Raises OSError when it fails."""
    libc = ctypes.CDLL(None, use_errno=True)
    # The functions are variadic and read longs; a plain int could be passed as half of one.
    longs = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result = getattr(libc, function)(*longs)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"this process cannot be locked in: {function} failed ({os.strerror(error)})")
    return int(result)


def _grant(ruleset: int, path: Path, rights: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError, NotADirectoryError):
        return
    try:
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            rights &= _OF_FILES
        rule = rights.to_bytes(8, sys.byteorder) + place.to_bytes(4, sys.byteorder)  # a packed struct
        call("syscall", _ADD_RULE, ruleset, 1, rule, 0)
    finally:
        os.close(place)


def _drop_privileges(kept: int) -> None:
    """Give up root's powers beyond those over files: they reach memory, devices and kernel around the file rules."""
    call("prctl", 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS, which Landlock asks for
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    held = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; then the same for capabilities 32 and up
    call("capget", header, held)
    call("capset", header, (ctypes.c_uint32 * 6)(held[0] & kept, held[1] & kept))
