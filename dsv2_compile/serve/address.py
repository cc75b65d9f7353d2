"""Where a server listens."""

from __future__ import annotations

import ipaddress
import socket

from dsv2_compile.errors import UsageError

_SEND_BUFFER = 64 << 10
"""Bytes that the system keeps for a client that reads slowly. What comes after waits in its `Running`."""


def bound(host: str, port: int, client_timeout: float) -> socket.socket:
    """A socket at ``host``:``port`` that does not listen yet. UsageError if there can be none.

    The system ends connections on which a client takes nothing of what is there for it for ``client_timeout`` seconds.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(client_timeout * 1000))
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as e:
        raise UsageError(
            f"Cannot serve at {host}, port {port}: {e.strerror}.",
            "Choose another with --host and --port; --port 0 takes any free port.",
        ) from e
    return listener


def is_loopback(listener: socket.socket) -> bool:
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback
