"""Child processes that do not outlive their parent, and descendants that do not outlive their ancestor.

Run as a program it is a guard, what an init is in a container: the parent of one command, in a session of its own.

    python child_process.py PARENT-PID COMMAND...

SIGTERM is passed on to the command alone. When the command ends, all that it left behind is killed and its exit code passed on.
SIGQUIT kills everything at once; so does the death of the parent, which the kernel announces by the same signal. Orphans of the
command, whatever session they have made for themselves, become children of the guard, so none gets away.

It needs nothing but the standard library and starts in milliseconds: a guard is run by its path, without site-packages.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
LIBC = ctypes.CDLL(None)

KILL = signal.SIGQUIT
"""Asks a guard to kill everything at once."""
WATCHED = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, KILL, signal.SIGCHLD}


def die_with_parent(parent: int, number: signal.Signals = signal.SIGKILL) -> bool:
    """Has the kernel send this process a signal when its parent dies. Linux only; may be called between fork and exec.

    Args:
        parent: Process id of the parent, as it was before the fork.
        number: The signal.

    Returns:
        Whether the parent is still there. If not, it died before the request and no signal will come.
    """
    LIBC.prctl(PR_SET_PDEATHSIG, number)
    return os.getppid() == parent


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent has ended."""
    LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1)


def kill_descendants(ancestor: int) -> None:
    """SIGKILL all descendants of this process, again and again until there are none. This process must adopt orphans."""
    while found := descendants(ancestor):
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.02)
        _reap(0)


def descendants(ancestor: int) -> list[int]:
    """Processes below this one that still run, from /proc."""
    children: dict[int, list[int]] = {}
    running: set[int] = set()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            # "PID (name) STATE PARENT ...", where the name may hold anything.
            state, parent = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[:2]
        except OSError:
            continue  # it has just ended
        children.setdefault(int(parent), []).append(int(folder.name))
        if state not in "ZX":
            running.add(int(folder.name))
    found, waiting = [], [ancestor]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += [pid for pid in below if pid in running]
        waiting += below
    return found


def main() -> int:
    """Guards a command. Returns its exit code, or 128 plus the number of the signal that ended it."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    adopt_orphans()
    if not die_with_parent(parent, KILL):
        return 128 + KILL
    guard = os.getpid()

    def before_exec() -> None:
        # Should the guard itself be killed, at least the command goes with it.
        if not die_with_parent(guard):
            os._exit(128 + signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)

    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=before_exec)  # the guard has one thread
    except OSError as error:
        print(f"cannot start {command[0]}: {error}", file=sys.stderr)
        return 127
    code = _wait(child.pid)
    kill_descendants(guard)
    return code


def _wait(child: int) -> int:
    """Pass signals on until the child has ended or everything is to be killed. Returns the exit code."""
    while True:
        number = signal.sigwait(WATCHED)
        if number == KILL:
            return 128 + KILL
        if number == signal.SIGCHLD:
            if (code := _reap(child)) is not None:
                return code
        else:
            os.kill(child, number)


def _reap(child: int) -> int | None:
    """Collect all that have ended. The child's exit code when it is among them."""
    result = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return result
        if pid == 0:
            return result
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            result = code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
