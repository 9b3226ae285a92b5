"""What systemd offers a service: sockets that it has opened, and to be told when the service is ready.

Both are a few environment variables; see sd_listen_fds(3) and sd_notify(3).
"""

from __future__ import annotations

import os
import socket
import time

from distilfast.errors import ConfigError

FIRST = 3
"""The descriptor of the first socket that is passed."""


def passed_socket() -> socket.socket | None:
    """The socket that was opened for this process, or None; raises ConfigError for several, and for what is none."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    count = os.environ.get("LISTEN_FDS", "")
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):  # they are not for this process's children
        os.environ.pop(name, None)
    if count != "1":
        raise ConfigError(f"LISTEN_FDS is {count!r}; one socket is needed.")
    try:
        passed = socket.socket(fileno=FIRST)
        is_listening = passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise ConfigError(f"LISTEN_FDS says that descriptor {FIRST} is a socket: {error.strerror}.") from None
    if not is_listening or passed.type != socket.SOCK_STREAM:
        raise ConfigError(f"Descriptor {FIRST}, which LISTEN_FDS passes, is not a stream socket that listens.")
    passed.setblocking(False)
    return passed


def notify(state: str) -> None:
    """Tell the service manager ``state``, as "READY=1"; nothing where there is none, or it does not listen."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):  # an abstract address
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.sendto(state.encode(), address)
    except OSError:
        return


def notify_reloading() -> None:
    """The models are being loaded again; "READY=1" follows."""
    notify(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
