"""Between host and program: new namespaces, a root folder of its own, another user, limits, and the end of it all.

keeper   started by the host; leaves its namespaces, waits for the judge, removes whatever is left
judge    first process of the new namespace: when it ends, the kernel ends every process in it
worker   the program
"""

import contextlib
import json
import os
import resource
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from langbridge.sandbox import kernel
from langbridge.sandbox.judge import Program, judge, limit_judge
from langbridge.sandbox.leftovers import end_descendants, end_user, tasks_of
from langbridge.sandbox.root import build_root, enter_root
from langbridge.sandbox.settings import Limits, Orders
from langbridge.sandbox.worker import work

DIGITS = 100_000
"""Longest numbers that are written out."""
WAKING = (signal.SIGTERM, signal.SIGCHLD)


def main(text: str) -> None:
    """Judge the program that `text`, JSON of Orders, tells of."""
    fields = json.loads(text)
    orders = Orders(**{**fields, "limits": Limits(**fields["limits"])})
    signal.pthread_sigmask(signal.SIG_BLOCK, WAKING)
    kernel.die_with_parent(signal.SIGTERM)  # which leaves time to clear away what the program started
    if os.getppid() != orders.parent:  # it ended before the line above
        return
    os.umask(0o077)
    sys.set_int_max_str_digits(DIGITS)
    first_to_end()
    kernel.never_gain_privileges()
    try:
        own_tasks = 1 + (leave_namespaces(orders) if orders.isolated else stay())
    except OSError as error:
        report(orders, refused=str(error))
        return
    keep(orders, own_tasks)


def report(orders: Orders, **fields: Any) -> None:
    """Tell the host something."""
    os.write(orders.verdict, (json.dumps(fields) + "\n").encode())


def keep(orders: Orders, own_tasks: int) -> None:
    """Start the judge, wait for it and remove what is left; `own_tasks` of ours are counted with the program's."""
    ready, go = os.pipe(), os.pipe()
    judging = os.fork()
    if judging == 0:
        try:
            confine(orders, ready[1], go[0], [ready[0], go[1]])
            serve(orders, own_tasks)
        except OSError as error:
            report(orders, refused=str(error))
        finally:
            os._exit(0)
    for descriptor in (ready[1], go[0], orders.verdict):
        os.close(descriptor)
    if os.read(ready[0], 1):
        os.write(go[1], b"g")
    while os.waitpid(judging, os.WNOHANG)[0] == 0:
        if signal.sigwait(WAKING) == signal.SIGTERM:  # from the host, or by its end
            os.kill(judging, signal.SIGKILL)
    if orders.isolated:
        return  # with the judge everything in its namespace has ended
    if os.geteuid() == 0:
        end_user(orders.user)
    end_descendants()
    if os.getppid() != orders.parent:  # the host was killed, and cannot do it
        shutil.rmtree(Path(orders.folder).parent, ignore_errors=True)


def stay() -> int:
    """Prepare to clear away a program without namespaces; returns how many tasks are counted with the program's."""
    kernel.adopt_orphans()
    return 0 if os.geteuid() == 0 else tasks_of(os.geteuid())


def first_to_end() -> None:
    """Ask the kernel to end this process and its children first when memory runs out."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def leave_namespaces(orders: Orders) -> int:
    """Leave the host's namespaces; returns how many tasks of ours are counted with the program's."""
    if os.geteuid() == 0:
        try:
            kernel.unshare(kernel.NAMESPACES)
            return 0
        except PermissionError:  # root without capabilities, as in many containers: go on as an ordinary user does
            become(orders.user)
            kernel.die_with_parent(signal.SIGTERM)
    user, group = os.geteuid(), os.getegid()
    kernel.unshare(kernel.NAMESPACES | kernel.NEW_USER)
    for name, line in (("setgroups", "deny"), ("gid_map", f"{group} {group} 1"), ("uid_map", f"{user} {user} 1")):
        Path("/proc/self", name).write_text(line, encoding="ascii")
    return 1


def become(user: int) -> None:
    """Become another user without groups; root only."""
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    kernel.set_dumpable(True)  # or the files of this process in /proc would be root's


def confine(orders: Orders, ready: int, go: int, others: list[int]) -> None:
    """Give this process a root folder of its own and take every privilege from it; returns when the keeper watches."""
    for descriptor in others:
        os.close(descriptor)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, WAKING)
    root = os.geteuid() == 0
    owner = orders.user if root else os.geteuid()
    if orders.isolated:
        build_root(Path(orders.folder), orders.limits.folder_size, owner, with_group=root)
        enter_root(Path(orders.folder))
    else:
        if root:
            os.chown(orders.folder, owner, owner)
        os.chdir(orders.folder)
    if root:
        become(owner)
    if orders.isolated:
        kernel.drop_capabilities()
    kernel.die_with_parent()
    filtered = kernel.filter_calls()
    os.write(ready, b"r")
    if os.read(go, 1) != b"g":  # the keeper ended before it could be noticed
        os._exit(0)
    os.close(ready)
    os.close(go)
    report(orders, isolated=orders.isolated, filtered=filtered)


def serve(orders: Orders, own_tasks: int) -> None:
    """Start the program, judge it and report the verdict."""
    asked, answers = os.pipe(), os.pipe()
    program = os.fork()
    if program == 0:
        run_program(orders, own_tasks, asked[0], answers[1])
    kernel.set_dumpable(False)  # the program is of the same user, and must not look in here
    for descriptor in (asked[0], answers[1], orders.program):
        os.close(descriptor)
    silence()
    limit_judge(orders.limits.memory, orders.limits.cpu_seconds + 5)
    with os.fdopen(orders.tests, encoding="utf-8") as file:
        setup, tests = json.load(file)
    asking = Program(program, asked[1], answers[0], orders.limits.cpu_seconds)
    verdict, detail = judge(asking, setup, tests, orders.entry_point)
    report(orders, verdict=verdict, detail=detail)


def silence() -> None:
    """Let nothing that the tests print reach the program's output."""
    nothing = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)


def run_program(orders: Orders, own_tasks: int, requests: int, replies: int) -> None:
    """Be the program: nothing of the judge's is open here, and its tests were not read yet when this process began."""
    status = 1
    try:
        if not orders.isolated:
            kernel.die_with_parent()
        with os.fdopen(orders.program, encoding="utf-8") as file:
            source = file.read()
        keep_only({0, 1, 2, requests, replies})
        os.environ.clear()
        limit_program(orders.limits, own_tasks)
        work(source, orders.entry_point, requests, replies)
        status = 0
    finally:
        os._exit(status)


def keep_only(wanted: set[int]) -> None:
    """Close all descriptors but these."""
    start = 0
    for descriptor in sorted(wanted):
        if start < descriptor:  # Python's closerange(0, 0) closes everything
            os.closerange(start, descriptor)
        start = descriptor + 1
    os.closerange(start, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def limit_program(limits: Limits, own_tasks: int) -> None:
    """Set the kernel's limits of this process and its children; they cannot be raised again."""
    for name, soft, hard in (
        ("CPU", limits.cpu_seconds, limits.cpu_seconds + 1),  # soft: a signal that tells the judge why
        ("AS", limits.memory, limits.memory),
        ("NPROC", limits.processes + own_tasks, limits.processes + own_tasks),
        ("FSIZE", limits.file_size, limits.file_size),
        ("NOFILE", limits.open_files, limits.open_files),
        ("CORE", 0, 0),
        ("MEMLOCK", 0, 0),
        ("MSGQUEUE", 0, 0),
        ("NICE", 0, 0),
        ("RTPRIO", 0, 0),
    ):
        most = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[1]
        if most != resource.RLIM_INFINITY:
            soft, hard = min(soft, most), min(hard, most)
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (soft, hard))
