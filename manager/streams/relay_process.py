"""A relay process: ``python -m manager.streams.relay_process FD``, FD is its control connection."""

from __future__ import annotations

import gc
import socket
import sys

from manager.streams.relay_loop import Received, RelayLoop

_BYTES, _DESCRIPTORS = 1 << 16, 64


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))

    def receive() -> Received:
        data, descriptors, _, _ = socket.recv_fds(control, _BYTES, _DESCRIPTORS)
        # With all three given Python asks the system for none of them.
        made = [socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fd) for fd in descriptors]
        return data, made

    gc.freeze()  # what is imported stays: no pause of a stream to look through it
    RelayLoop(control, receive).run()


if __name__ == "__main__":
    main()
