"""`python -m spinrun_worker.trainer.launch`: the launcher's way in.

The first process of a container gets no signal that it neither handles nor blocks: the kernel drops it. Until the launcher waits
for them, stop signals must therefore be blocked, and its imports take seconds on a busy machine. Without this a pod that is
deleted as it starts would train on until its grace period is over.
"""

import signal
import sys

if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})

    from spinrun_worker.trainer.ranks.launcher import main

    sys.exit(main())
