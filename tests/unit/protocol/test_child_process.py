"""Children that do not outlive their parent."""

import os
import signal
import subprocess
import sys
import time

from support.processes import is_running

PARENT = """
import os, signal, subprocess, sys
from spinrun_protocol.child_process import die_with_parent

parent = os.getpid()
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"], preexec_fn=lambda: die_with_parent(parent))
print(child.pid, flush=True)
os.kill(parent, signal.SIGKILL)
"""


def test_child_dies_with_its_parent() -> None:
    ended = subprocess.run([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    child = int(ended.stdout)
    try:
        deadline = time.monotonic() + 10
        while is_running(child):
            assert time.monotonic() < deadline, "the child has outlived its parent"
            time.sleep(0.02)
    finally:
        if is_running(child):
            os.kill(child, signal.SIGKILL)


def test_parent_that_is_gone_already_is_noticed() -> None:
    program = "import os; from spinrun_protocol.child_process import die_with_parent as die; print(die(os.getppid()), die(-1))"
    assert subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True).stdout.split() == ["True", "False"]
