"""Linux calls that Python's `os` lacks: namespaces, mounts, capabilities, process controls, a filter of calls."""

import ctypes
import errno
import os
import platform
import signal
import struct
from typing import NamedTuple

NEW_NAMESPACE, NEW_CGROUP, NEW_UTS, NEW_IPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
NEW_USER, NEW_PID, NEW_NETWORK = 0x10000000, 0x20000000, 0x40000000
NAMESPACES = NEW_NAMESPACE | NEW_CGROUP | NEW_UTS | NEW_IPC | NEW_PID | NEW_NETWORK

READ_ONLY, NO_SETUID, NO_DEVICES, NO_EXEC = 0x1, 0x2, 0x4, 0x8
"""Flags of mounts; `mount` and `mount_setattr` number these four alike."""
BIND, RECURSIVE, PRIVATE, DETACH = 0x1000, 0x4000, 0x40000, 0x2

_MOUNT_SETATTR = 442  # the same number on all machines
_HERE, _AT_RECURSIVE = -100, 0x8000

_DEATH_SIGNAL, _DUMPABLE, _SECCOMP, _SUBREAPER, _NO_NEW_PRIVILEGES, _AMBIENT = 1, 4, 22, 36, 38, 47

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: object) -> int:
    """Call a function of the C library; raises OSError when it fails."""
    found = int(getattr(_libc, name)(*arguments))
    if found < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return found


def unshare(flags: int) -> None:
    """Leave the namespaces that `flags` name for new ones."""
    _call("unshare", flags)


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """Mount a file system, or bind a folder or file to another place."""
    name = None if kind is None else kind.encode()
    _call("mount", os.fsencode(source), os.fsencode(target), name, ctypes.c_ulong(flags), options.encode())


def restrict_mount(target: str, flags: int, *, recursive: bool = True) -> None:
    """Add READ_ONLY, NO_SETUID, NO_DEVICES, NO_EXEC to a mount and, with `recursive`, to all below it."""
    wanted = ctypes.create_string_buffer(struct.pack("QQQQ", flags, 0, 0, 0))
    below = _AT_RECURSIVE if recursive else 0
    where = ctypes.c_char_p(os.fsencode(target))
    _call("syscall", ctypes.c_long(_MOUNT_SETATTR), _HERE, where, below, wanted, ctypes.c_size_t(32))


def enter_root(folder: str) -> None:
    """Make a mounted folder the root of all files, and let go of the old root."""
    os.chdir(folder)
    _call("pivot_root", b".", b".")
    _call("umount2", b".", DETACH)
    os.chdir("/")


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Let the kernel send this process a signal when the one that started it ends; a change of user undoes it."""
    _control(_DEATH_SIGNAL, number)


def adopt_orphans() -> None:
    """Become the parent of all descendants whose own parents end."""
    _control(_SUBREAPER, 1)


def set_dumpable(yes: bool) -> None:
    """Say whether other processes of the same user may look into this one."""
    _control(_DUMPABLE, int(yes))


def never_gain_privileges() -> None:
    """Let no program that is started from here on gain privileges."""
    _control(_NO_NEW_PRIVILEGES, 1)


def drop_capabilities() -> None:
    """Give up all capabilities."""
    _control(_AMBIENT, 4)  # clear all
    header = ctypes.create_string_buffer(struct.pack("Ii", 0x20080522, 0))
    _call("capset", header, ctypes.create_string_buffer(24))


def _control(option: int, value: int) -> None:
    _call("prctl", option, *(ctypes.c_ulong(part) for part in (value, 0, 0, 0)))


class Machine(NamedTuple):
    """Numbers of system calls on one kind of machine."""

    architecture: int
    clone: int
    refused: tuple[int, ...]
    """ptrace, pivot_root, mount, umount2, kexec_load, add_key, request_key, keyctl, unshare, perf_event_open, setns,
    process_vm_readv, process_vm_writev, bpf, userfaultfd: no generated program needs them."""


MACHINES = {
    "x86_64": Machine(0xC000003E, 56, (101, 155, 165, 166, 246, 248, 249, 250, 272, 298, 308, 310, 311, 321, 323)),
    "aarch64": Machine(0xC00000B7, 220, (117, 41, 40, 39, 104, 217, 218, 219, 97, 241, 268, 270, 271, 280, 282)),
}
_NEWER = (*range(425, 434), _MOUNT_SETATTR)  # io_uring, mounts by descriptor: one number on all machines
_CLONE3 = 435
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _FAIL = 0x7FFF0000, 0x80000000, 0x00050000
_OTHER_ABI = 0x40000000  # x32 calls on x86_64
_FILTER_MODE = 2


def filter_calls() -> bool:
    """Refuse calls that only an attack needs, new namespaces among them; False on a machine that is not known."""
    if platform.machine() not in MACHINES:
        return False
    program = _filter(MACHINES[platform.machine()])
    code = ctypes.create_string_buffer(b"".join(program), 8 * len(program))
    head = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code)))
    _call("prctl", _SECCOMP, ctypes.c_ulong(_FILTER_MODE), head, ctypes.c_ulong(0), ctypes.c_ulong(0))
    return True


def _filter(machine: Machine) -> list[bytes]:
    """Return a classic BPF program over (call number, architecture, ..., arguments from byte 16)."""

    def step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("HBBI", code, yes, no, value)

    program = [
        step(_LOAD, 4),
        step(_EQUAL, machine.architecture, 1, 0),
        step(_RETURN, _KILL),
        step(_LOAD, 0),
        step(_AT_LEAST, _OTHER_ABI, 0, 1),
        step(_RETURN, _KILL),
        step(_EQUAL, _CLONE3, 0, 1),  # its flags lie in memory, where no filter sees them; libraries then use clone
        step(_RETURN, _FAIL | errno.ENOSYS),
    ]
    for number in (*machine.refused, *_NEWER):
        program += [step(_EQUAL, number, 0, 1), step(_RETURN, _FAIL | errno.EPERM)]
    return [
        *program,
        step(_EQUAL, machine.clone, 0, 3),
        step(_LOAD, 16),
        step(_ANY_BIT, NAMESPACES | NEW_USER, 0, 1),
        step(_RETURN, _FAIL | errno.EPERM),
        step(_RETURN, _ALLOW),
    ]
