"""A server on the loopback that answers like the Hugging Face hub, for one dataset."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

REPOSITORY = "someone/prose"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def fake_hub(files: dict[str, bytes], commit: str = COMMIT) -> Iterator[str]:
    """Serve `REPOSITORY` with these files at `commit`, its newest; gives the address."""

    def entry(path: str) -> dict[str, object]:
        oid = hashlib.sha1(files[path]).hexdigest()
        return {"type": "file", "path": path, "size": len(files[path]), "oid": oid}

    def folders() -> set[str]:
        return {"/".join(p.split("/")[:n]) for p in files for n in range(1, p.count("/") + 1)}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def answer(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Repo-Commit", commit)
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
            path = unquote(urlsplit(self.path).path)
            if path != f"/api/datasets/{REPOSITORY}/paths-info/{commit}":
                return self.missing("RevisionNotFound")
            asked = json.loads(body)["paths"] if body.startswith("{") else []
            asked = asked or [unquote(p.split("=")[1]) for p in body.split("&") if "paths=" in p]
            found: list[dict[str, object]] = [entry(p) for p in asked if p in files]
            found += [
                {"type": "directory", "path": p, "oid": "0", "size": 0}
                for p in asked
                if p in folders()
            ]
            return self.json(found)

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            api = f"/api/datasets/{REPOSITORY}"
            raw = f"/datasets/{REPOSITORY}/resolve/{commit}/"
            if not path.removeprefix("/api").startswith(f"/datasets/{REPOSITORY}"):
                return self.missing("RepoNotFound")
            if path in (api, f"{api}/revision/{commit}", f"{api}/revision/main"):
                return self.json(
                    {
                        "id": REPOSITORY,
                        "sha": commit,
                        "private": False,
                        "siblings": [{"rfilename": name} for name in files],
                        "cardData": {"license": "cc0-1.0"},
                        "tags": [],
                    }
                )
            if path.startswith(f"{api}/tree/{commit}"):
                return self.tree(path.removeprefix(f"{api}/tree/{commit}").strip("/"))
            name = path.removeprefix(raw)
            if path.startswith(raw) and name in files:
                return self.file(files[name])
            code = "EntryNotFound" if path.startswith(raw) else "RevisionNotFound"
            return self.missing(code)

        def do_HEAD(self) -> None:
            self.do_GET()

        def tree(self, folder: str) -> None:
            inside = f"{folder}/" if folder else ""
            if folder and folder not in folders():
                return self.missing("EntryNotFound")
            recursive = "recursive=true" in self.path.lower()
            found = [
                entry(p)
                for p in files
                if p.startswith(inside) and (recursive or "/" not in p[len(inside) :])
            ]
            found += [
                {"type": "directory", "path": p, "oid": "0", "size": 0}
                for p in sorted(folders())
                if p.startswith(inside) and (recursive or "/" not in p[len(inside) :])
            ]
            return self.json(found)

        def file(self, data: bytes) -> None:
            etag = f'"{hashlib.sha1(data).hexdigest()}"'
            span = self.headers.get("Range")
            if span is None:
                return self.answer(200, data, ETag=etag, Accept_Ranges="bytes")
            start, end = span.removeprefix("bytes=").split("-")
            stop = min(int(end) + 1 if end else len(data), len(data))
            return self.answer(
                206,
                data[int(start) : stop],
                ETag=etag,
                Content_Range=f"bytes {start}-{stop - 1}/{len(data)}",
            )

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
