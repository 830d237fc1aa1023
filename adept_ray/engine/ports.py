"""The ports of a cluster's head: free where a command starts Ray, and Ray behind them where it joins one."""

from __future__ import annotations

import os
import socket

from adept_ray.config.errors import UserError
from adept_ray.config.os_faults import describe_os_fault

HEAD_PORT = "RAY_GCS_SERVER_PORT"  # the one port that Ray takes from the environment; it finds the others
# What a client of HTTP/2, which Ray speaks, begins with: the preface and a frame of settings without any.
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
FRAME_HEAD = 9  # bytes
KIND, SETTINGS = 3, 4  # which of them is the frame's kind, and that of settings
TIMEOUT_S = 10.0
JOIN = "give the address that `ray start --head` printed, or unset RAY_ADDRESS to have Ray started here"


def check_head_port() -> None:
    """Raise :class:`UserError` where a head that is started here is told a port that it can't have.

    Ray would wait for it for 40 seconds.
    """
    if not (given := os.environ.get(HEAD_PORT)):
        return
    remedy = f"set {HEAD_PORT} to a free port, or unset it to have one found"
    if not given.isascii() or not given.isdigit() or int(given) > 65535:
        raise UserError(f"{HEAD_PORT}={given} is no port, a number up to 65535: {remedy}")
    try:
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was left just now is free
            trial.bind(("", int(given)))
    except OSError as problem:
        why = describe_os_fault(problem, f"port {given}").partition(": ")[2].partition(":")[0]
        raise UserError(f"{HEAD_PORT}={given}: {why or problem}: {remedy}") from None


def check_listener(address: str, host: str, port: int) -> None:
    """Raise :class:`UserError` where what listens at the head's port is no Ray; OSError where nothing does.

    Ray would ask for half a minute and end the process. Of what says nothing nobody knows: it may be slow.
    `address` is what RAY_ADDRESS says.
    """
    with socket.create_connection((host, port), timeout=TIMEOUT_S) as there:
        if os.environ.get("RAY_USE_TLS", "0").lower() not in ("", "0", "false"):
            return  # it answers nobody who doesn't begin with a certificate
        try:
            there.sendall(HELLO)
            said = there.recv(FRAME_HEAD, socket.MSG_WAITALL)
        except TimeoutError:
            return
        except ConnectionError:
            said = b""
    if said[KIND : KIND + 1] != bytes((SETTINGS,)):
        web = ", but a web server, as Ray's dashboard is" if said.startswith(b"HTTP/") else ""
        raise UserError(f"what listens at RAY_ADDRESS={address} is no head of a Ray cluster{web}: {JOIN}")
