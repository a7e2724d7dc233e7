"""The first process of a container: it starts the program, hands signals on and reaps.

What a killed launch script leaves behind becomes a child of process 1, and stays in the table of
processes until that waits for it. The program itself must not wait for children that it does not
know: it would take the exit codes of those that it does.
"""

from __future__ import annotations

import os
import signal
import sys

if sys.platform != "win32":
    _HANDED_ON = {
        signal.SIGHUP,
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGTERM,
        signal.SIGUSR1,
        signal.SIGUSR2,
    }

    def leave_process_one() -> None:
        """Where this is process 1: returns in a child, and ends the process as the child ends.
        To be called before there is any thread."""
        if os.getpid() != 1:
            return
        awaited = {*_HANDED_ON, signal.SIGCHLD}
        # Before the child is there, so that no signal is lost in between.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
        child = os.fork()
        if child == 0:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            return
        while True:
            status = _reap(child)
            if status is not None:
                code = os.waitstatus_to_exitcode(status)
                os._exit(code if code >= 0 else 128 - code)
            received = signal.sigwaitinfo(awaited)
            # Ctrl+C on a terminal reaches the child by itself, and a second one means haste.
            is_from_terminal = received.si_code > 0
            if received.si_signo != signal.SIGCHLD and not is_from_terminal:
                os.kill(child, received.si_signo)

    def _reap(child: int) -> int | None:
        """Waits for all that have ended; the status of ``child`` if it is among them."""
        status = None
        while True:
            try:
                pid, ended = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return status
            if pid == 0:
                return status
            if pid == child:
                status = ended

else:

    def leave_process_one() -> None:
        """Windows has no such process."""
