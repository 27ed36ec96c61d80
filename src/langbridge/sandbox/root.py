"""The root folder of a jail: Python's own files and the system's libraries, read-only, and one small folder to write in.

Nothing else of the host is there: no homes, no settings, no /proc, no programs.
"""

import os
import sys

from langbridge.sandbox import kernel

WORK = "/writable"
"""The only place where files can be written; a file system of its own, in memory."""
SYSTEM = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
MOST_FILES = 4096
"""Files and folders under WORK."""


def build_root(folder: str, size: int, owner: int, *, with_group: bool) -> None:
    """Mount everything that a jail sees below `folder`; `size`: bytes of WORK; `owner`: who may write there."""
    kernel.mount("none", "/", None, kernel.RECURSIVE | kernel.PRIVATE)  # first: nothing from here on reaches the host
    os.umask(0o022)
    plain = kernel.NO_SETUID | kernel.NO_DEVICES
    kernel.mount("jail", folder, "tmpfs", plain, "size=1m,mode=755")
    for source in sources():
        show(source, folder, plain)
    for device in DEVICES:
        show(device, folder, kernel.NO_SETUID | kernel.NO_EXEC)
    place = folder + WORK
    os.mkdir(place)
    options = f"size={size},nr_inodes={MOST_FILES},mode=700"
    kernel.mount("work", place, "tmpfs", plain | kernel.NO_EXEC, options)
    os.chown(place, owner, owner if with_group else -1)
    os.umask(0o077)
    kernel.restrict_mount(folder, kernel.READ_ONLY | plain, recursive=False)


def sources() -> list[str]:
    """Return what a Python interpreter needs, links included, without anything that lies below something else."""
    wanted = {path for path in (*SYSTEM, *sys.path, f"{sys.base_prefix}/lib") if os.path.isabs(path)}
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
        mapped = {line.split(maxsplit=5)[5].rstrip("\n") for line in file if len(line.split(maxsplit=5)) == 6}
    wanted |= {os.path.dirname(path) for path in mapped if ".so" in path and os.path.isfile(path)}
    there = {path for path in wanted if os.path.lexists(path) and path not in ("/", WORK)}
    real = {os.path.realpath(path) for path in there} | {path for path in there if os.path.islink(path)}
    kept: list[str] = []
    for path in sorted(real):
        if not any(path.startswith(above + "/") for above in kept if not os.path.islink(above)):
            kept.append(path)
    return kept


def show(source: str, folder: str, flags: int) -> None:
    """Let a folder, file or link of the host be seen below `folder`, read-only."""
    place = folder + source
    os.makedirs(os.path.dirname(place), exist_ok=True)
    if os.path.islink(source):
        os.symlink(os.readlink(source), place)
        return
    if os.path.isdir(source):
        os.makedirs(place, exist_ok=True)
    else:
        os.close(os.open(place, os.O_CREAT | os.O_WRONLY, 0o644))
    kernel.mount(source, place, None, kernel.BIND | kernel.RECURSIVE)
    kernel.restrict_mount(place, kernel.READ_ONLY | flags)


def enter_root(folder: str) -> None:
    """Go into a root folder that was built, for good; raises OSError if anything of the host can be written there."""
    kernel.enter_root(folder)
    if not os.statvfs("/").f_flag & os.ST_RDONLY:
        raise OSError("the jail's root can be written")
    os.chdir(WORK)
