"""The root folder of a jail: Python's own files and the system's libraries, read-only; one small folder to write in.

Nothing else of the host is there: no homes, no settings, no /proc, no /bin.
"""

import contextlib
import os
import sys
from pathlib import Path

from langbridge.sandbox import kernel

WORK = Path("/writable")
"""The only place where files can be written; a file system of its own, in memory."""
SYSTEM = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
MOST_FILES = 4096
"""Files and folders under WORK."""


def build_root(folder: Path, size: int, owner: int, *, with_group: bool) -> None:
    """Mount everything that a jail sees below `folder`; `size`: bytes of WORK; `owner`: who may write there."""
    kernel.mount("none", "/", None, kernel.RECURSIVE | kernel.PRIVATE)  # first: nothing from here on reaches the host
    mask = os.umask(0o022)
    plain = kernel.NO_SETUID | kernel.NO_DEVICES
    kernel.mount("jail", str(folder), "tmpfs", plain, "size=1m,mode=755")
    for source in sources():
        show(source, folder, plain)
    for device in DEVICES:
        show(Path(device), folder, kernel.NO_SETUID | kernel.NO_EXEC)
    place = below(folder, WORK)
    place.mkdir()
    options = f"size={size},nr_inodes={MOST_FILES},mode=700"
    kernel.mount("work", str(place), "tmpfs", plain | kernel.NO_EXEC, options)
    os.chown(place, owner, owner if with_group else -1)
    os.umask(mask)
    kernel.restrict_mount(str(folder), kernel.READ_ONLY | plain, recursive=False)


def sources() -> list[Path]:
    """Return what a Python interpreter needs, links included, without anything that lies below something else."""
    with Path("/proc/self/maps").open(encoding="utf-8", errors="surrogateescape") as file:
        mapped = [Path(line.split(maxsplit=5)[5].rstrip("\n")) for line in file if ".so" in line]
    libraries = [path.parent for path in mapped if path.is_file()]
    wanted = {*map(Path, SYSTEM), *map(Path, sys.path), Path(sys.base_prefix, "lib"), *libraries}
    there = {path for path in wanted if path.is_absolute() and path.exists() and path != Path("/")}
    links = {path for path in there if path.is_symlink()}
    kept: list[Path] = []
    for path in sorted({path.resolve() for path in there}):
        if not any(path.is_relative_to(above) for above in kept):
            kept.append(path)
    return [*kept, *sorted(link for link in links if not any(link.is_relative_to(above) for above in kept))]


def show(source: Path, folder: Path, flags: int) -> None:
    """Let a folder, file or link of the host be seen below `folder`, read-only."""
    place = below(folder, source)
    place.parent.mkdir(parents=True, exist_ok=True)
    if source.is_symlink():
        place.symlink_to(source.readlink())
        return
    if source.is_dir():
        place.mkdir(exist_ok=True)
    else:
        place.touch()
    kernel.mount(str(source), str(place), None, kernel.BIND | kernel.RECURSIVE)
    kernel.restrict_mount(str(place), kernel.READ_ONLY | flags)


def below(folder: Path, path: Path) -> Path:
    """Return where a path of the host lies below `folder`."""
    return folder / path.relative_to("/")


def enter_root(folder: Path) -> None:
    """Go into a root folder that was built, for good; raises OSError if it can be written.

    The folder that it was built on is removed, so that it does not stay if the host is killed.
    """
    outside = os.open(folder.parent.parent, os.O_RDONLY | os.O_DIRECTORY)
    kernel.enter_root(str(folder))
    with contextlib.suppress(OSError):  # another user's: the host will remove it
        os.rmdir(f"{folder.parent.name}/{folder.name}", dir_fd=outside)
        os.rmdir(folder.parent.name, dir_fd=outside)
    os.close(outside)
    if not os.statvfs("/").f_flag & os.ST_RDONLY:
        raise OSError("the jail's root can be written")
    os.chdir(WORK)
