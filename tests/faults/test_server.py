"""MLflow servers that are none. A real one: tests/unit/test_ui.py."""

from __future__ import annotations

import logging
import re
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from test_tracking import finish, study_of

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "evidence"))
from builder import build_results

from mhclite.errors import UserError
from mhclite.tracking import store as tracking_store
from mhclite.tracking import track as tracking

PAGE = f"<!DOCTYPE html><style>{'x { color: red }' * 200}</style><h1>Sign in</h1>{'words ' * 500}"


def http(status: str, body: str, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join([*lines, "", body]).encode()


# What a server answers to everything, and what is said of it.
ODD = {
    "nobody": (None, "refused"),
    "deaf": (b"", "timed out"),
    "down for hours": (http("503 Service Unavailable", PAGE, "Retry-After: 3600"), "503"),
    "a sign-in page": (http("200 OK", PAGE, "Content-Type: text/html"), "Sign in words"),
    "another protocol": (b"SSH-2.0-OpenSSH_9.6\r\n", "SSH-2.0-OpenSSH_9.6|BadStatusLine"),
}


class Odd:
    """A server that answers everything with the same bytes, or with none."""

    def __init__(self, answer: bytes | None) -> None:
        self.answer, self.heard = answer, b""

    def __enter__(self) -> Odd:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        if self.answer is None:
            self.socket.close()
        self.over = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                threading.Thread(target=self._talk, args=self.socket.accept()[:1]).start()

    def _talk(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:
            connection.settimeout(5)
            self.heard = connection.recv(100_000)
            connection.sendall(self.answer or b"")
            if not self.answer:
                self.over.wait()

    def __exit__(self, *exception: object) -> None:
        self.over.set()
        self.socket.close()


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """results/ of a complete study."""
    results = tmp_path_factory.mktemp("complete") / "results"
    finish(build_results(results, study_of()))
    return results


@pytest.mark.parametrize("name", ODD)
def test_an_odd_server_is_one_line(
    name: str,
    complete: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Of `track`, with nothing secret in it."""
    caplog.set_level(logging.INFO)
    tracking_store.prepare_environment()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0ken")
    answer, said = ODD[name]
    with Odd(answer) as server:
        with pytest.raises(UserError) as caught:
            tracking.track(complete / "synthetic", server.uri, tmp_path / "receipt.json")
        assert answer is None or b"Bearer t0ken" in server.heard
    line = str(caught.value)
    assert re.search(said, line), line
    assert len(line) < 500
    assert "\n" not in line
    assert "t0ken" not in line + caplog.text
    assert server.uri in line
    assert not (tmp_path / "receipt.json").exists()
