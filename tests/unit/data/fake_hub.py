"""A server on the loopback that answers like the Hugging Face hub, for one dataset."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

REPOSITORY = "someone/prose"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
API = f"/api/datasets/{REPOSITORY}"
RAW = f"/datasets/{REPOSITORY}/resolve/{COMMIT}/"


@contextmanager
def fake_hub(files: dict[str, bytes]) -> Iterator[str]:
    """Serve `REPOSITORY` with these files at `COMMIT`, its newest; gives the address."""

    def entry(path: str) -> dict[str, object]:
        if path not in files:
            return {"type": "directory", "path": path, "oid": "0", "size": 0}
        oid = hashlib.sha1(files[path]).hexdigest()
        return {"type": "file", "path": path, "size": len(files[path]), "oid": oid}

    def below(folder: str) -> list[str]:
        """What is in a folder and in those within it."""
        folders = {"/".join(p.split("/")[:n]) for p in files for n in range(1, p.count("/") + 1)}
        return [path for path in (*files, *sorted(folders)) if path.startswith(folder)]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def answer(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Repo-Commit", COMMIT)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def json(self, value: object, status: int = 200, **headers: str) -> None:
            self.answer(
                status, json.dumps(value).encode(), Content_Type="application/json", **headers
            )

        def missing(self, code: str) -> None:
            self.json({"error": code}, 404, X_Error_Code=code, X_Error_Message=code)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            asked = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
            self.json([entry(path) for path in asked if path in below("")])

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            if not path.removeprefix("/api").startswith(f"/datasets/{REPOSITORY}"):
                self.missing("RepoNotFound")
            elif path in (API, f"{API}/revision/{COMMIT}", f"{API}/revision/main"):
                card = {"license": "cc0-1.0"}
                siblings = [{"rfilename": name} for name in files]
                self.json({"id": REPOSITORY, "sha": COMMIT, "siblings": siblings, "cardData": card})
            elif path.startswith(f"{API}/tree/{COMMIT}"):
                folder = path.removeprefix(f"{API}/tree/{COMMIT}").strip("/")
                self.json([entry(name) for name in below(f"{folder}/" if folder else "")])
            elif path.removeprefix(RAW) in files:
                self.file(files[path.removeprefix(RAW)])
            else:
                self.missing("EntryNotFound" if path.startswith(RAW) else "RevisionNotFound")

        def do_HEAD(self) -> None:
            self.do_GET()

        def file(self, data: bytes) -> None:
            etag = f'"{hashlib.sha1(data).hexdigest()}"'
            span = self.headers.get("Range")
            if span is None:
                return self.answer(200, data, ETag=etag, Accept_Ranges="bytes")
            start, end = span.removeprefix("bytes=").split("-")
            stop = min(int(end) + 1 if end else len(data), len(data))
            where = f"bytes {start}-{stop - 1}/{len(data)}"
            return self.answer(206, data[int(start) : stop], ETag=etag, Content_Range=where)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
