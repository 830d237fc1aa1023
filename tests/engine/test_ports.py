"""A port that is taken, and one behind which is no Ray, are told before Ray is started or asked."""

import socket
import threading
from contextlib import contextmanager

import pytest

from adept_ray.config.errors import UserError
from adept_ray.engine.ports import HEAD_PORT, HELLO, check_head_port, check_listener


@contextmanager
def listener(answer):
    """The port of something that answers its first caller so; with None it only takes the port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            caller, _ = server.accept()
            with caller:
                caller.recv(len(HELLO))
                caller.sendall(answer)

        thread = threading.Thread(target=serve)
        if answer is not None:
            thread.start()
        yield server.getsockname()[1]
        if answer is not None:
            thread.join()


def test_a_taken_port_of_the_head_is_named(monkeypatch):
    """With the variable that gave it; one that is free, or none, is fine."""
    monkeypatch.delenv(HEAD_PORT, raising=False)
    check_head_port()
    with listener(None) as port:
        monkeypatch.setenv(HEAD_PORT, str(port))
        with pytest.raises(
            UserError, match=f"^{HEAD_PORT}={port}: its port is taken: set {HEAD_PORT} to a f"
        ):
            check_head_port()
    check_head_port()


@pytest.mark.parametrize("given", ["x", "-1", "65536"])
def test_what_is_no_port_is_refused(monkeypatch, given):
    """Ray would say what Python says of it."""
    monkeypatch.setenv(HEAD_PORT, given)
    with pytest.raises(UserError, match=f"^{HEAD_PORT}={given} is no port"):
        check_head_port()


@pytest.mark.parametrize(
    ("answer", "said"),
    [(b"HTTP/1.1 400 Bad Request\r\n", ", but a web server, .*"), (b"-ERR no\r\n", ""), (b"", "")],
)
def test_something_else_at_the_address_is_told(monkeypatch, answer, said):
    """Ray would ask it for half a minute and end the process without a word."""
    monkeypatch.delenv("RAY_USE_TLS", raising=False)
    with (
        listener(answer) as port,
        pytest.raises(
            UserError, match=rf"RAY_ADDRESS=there is no head of a Ray cluster{said}: give the address"
        ),
    ):
        check_listener("there", "127.0.0.1", port)


def test_what_speaks_as_ray_does_is_left_to_ray(monkeypatch):
    """And so is what wants a certificate first, of which nothing is asked."""
    monkeypatch.delenv("RAY_USE_TLS", raising=False)
    with listener(bytes((0, 0, 6, 4, 0, 0, 0, 0, 0))) as port:
        check_listener("there", "127.0.0.1", port)
    monkeypatch.setenv("RAY_USE_TLS", "1")
    with listener(b"no") as port:
        check_listener("there", "127.0.0.1", port)
