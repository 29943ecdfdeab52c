# SPDX-License-Identifier: Apache-2.0
"""A Hub on loopback: the part of the Hub's HTTP API that the real clients call, over folders on disk."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.tiny import save_tiny_model

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
DATASET = "yahma/alpaca-cleaned"
COMMIT = "c0ffee" * 6 + "c0de"
PAGE = 3
"""Entries of one page of a tree: small, so that clients must follow the links."""

_API = re.compile(
    r"/api/(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)(?:/(?P<what>revision|tree|paths-info)/(?P<rest>.+))?"
)
_FILE = re.compile(r"/(?P<kind>datasets/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")

REFUSALS: dict[str, tuple[int, str, str]] = {
    "unauthorized": (401, "", "Invalid credentials in Authorization header"),
    "gated": (403, "GatedRepo", "Access to this repository is restricted. Visit the page to ask for access."),
    "missing": (404, "RepoNotFound", "Repository not found"),
    "broken": (500, "", "Internal error"),
}
"""Mode -> status, X-Error-Code and X-Error-Message of every answer."""


class HubServer:
    """Serves `root/models/<owner>/<name>` and `root/datasets/<owner>/<name>` at `url` while it is entered."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.mode = "ok"
        """`ok`, a key of REFUSALS, or `slow`: no answer for ten seconds."""
        self.refused_repo = ""
        """The repository that `mode` is about; empty: all of them."""
        self.requests: list[str] = []
        self._server = _Listener(self)

    @property
    def url(self) -> str:
        """Returns what HF_ENDPOINT must be."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def environment(self, home: Path) -> dict[str, str]:
        """Returns the variables with which the real clients use this Hub, and cache below `home`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_ETAG_TIMEOUT": "2",
            "HF_HUB_DOWNLOAD_TIMEOUT": "2",
            "NO_PROXY": "127.0.0.1",
        }

    def folder(self, kind: str, repo: str) -> Path:
        """Returns where the files of a repository lie."""
        return self.root / kind / repo

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @contextmanager
    def out_of_reach(self) -> Iterator[None]:
        """Leaves the address without anyone who answers."""
        self.__exit__()
        try:
            yield
        finally:
            self._server = _Listener(self, self._server.server_port)
            self.__enter__()


def fill(root: Path, num_rows: int = 1200) -> None:
    """Writes a tiny model under SmolLM2's name and `num_rows` of made-up instructions under Alpaca's."""
    save_tiny_model(
        root / "models" / MODEL,
        num_hidden_layers=2,
        num_attention_heads=3,
        hidden_size=48,
        num_key_value_heads=1,
    )
    folder = root / "datasets" / DATASET
    folder.mkdir(parents=True)
    rows = [
        {
            "instruction": f"Add {i % 31} and {i % 17}.",
            "input": "Use digits." if i % 3 == 0 else "",
            "output": f"The sum is {i % 31 + i % 17}.",
        }
        for i in range(num_rows)
    ]
    (folder / "alpaca_data_cleaned.json").write_text(json.dumps(rows, indent=1))
    (folder / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# Made-up instructions\n")


class _Listener(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: HubServer, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Answer)
        self.hub = hub

    def handle_error(self, *_: Any) -> None:
        """Says nothing of a client that hung up."""


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> HubServer:
        assert isinstance(self.server, _Listener)
        return self.server.hub

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        address = urlsplit(self.path)
        path, query = unquote(address.path), parse_qs(address.query)
        self.hub.requests.append(f"{self.command} {self.path}")
        mode = self.hub.mode if self.hub.refused_repo in path else "ok"
        if mode == "slow":
            time.sleep(10)
        if mode in REFUSALS:
            self._refuse(*REFUSALS[mode])
        elif match := _API.fullmatch(path):
            self._api(match, query, body)
        elif match := _FILE.fullmatch(path):
            self._file(match)
        else:
            self._refuse(404, "", "Not found")

    def _api(self, match: re.Match[str], query: dict[str, list[str]], body: bytes) -> None:
        folder = self.hub.folder(match["kind"], match["repo"])
        revision, _, below = (match["rest"] or "main").partition("/")
        if not folder.is_dir():
            self._refuse(404, "RepoNotFound", "Repository not found")
        elif revision not in ("main", COMMIT):
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif match["what"] == "tree" and not (folder / below).is_dir():
            self._refuse(404, "EntryNotFound", "Entry not found")
        elif match["what"] == "tree":
            self._tree(_entries(folder, below, query.get("recursive", [""])[0].lower() == "true"), query)
        elif match["what"] == "paths-info":
            paths = parse_qs(body.decode()).get("paths") or json.loads(body).get("paths", [])
            self._json([entry for entry in _entries(folder, "", True) if entry["path"] in paths])
        else:
            self._json(_info(match["repo"], folder))

    def _tree(self, entries: list[dict[str, Any]], query: dict[str, list[str]]) -> None:
        start = int(query.get("cursor", ["0"])[0])
        end = start + PAGE
        headers = {}
        if end < len(entries):
            address = urlsplit(self.path)
            others = "&".join(part for part in address.query.split("&") if part and not part.startswith("cursor="))
            headers["Link"] = f'<{self.hub.url}{address.path}?{others}&cursor={end}>; rel="next"'
        self._json(entries[start:end], headers)

    def _file(self, match: re.Match[str]) -> None:
        folder = self.hub.folder("datasets" if match["kind"] else "models", match["repo"])
        file = folder / match["file"]
        if not folder.is_dir():
            self._refuse(404, "RepoNotFound", "Repository not found")
        elif match["revision"] not in ("main", COMMIT):
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {match['revision']}")
        elif not file.is_file():
            self._refuse(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": COMMIT})
        else:
            content = file.read_bytes()
            headers = {"ETag": f'"{_digest(content)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if part is None:
                self._send(200, content, headers)
                return
            start, end = int(part[1]), min(int(part[2] or len(content) - 1), len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            self._send(206, content[start : end + 1], headers)

    def _refuse(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        reason_headers = {"X-Error-Code": code} if code else {}
        body = json.dumps({"error": message}).encode()
        self._send(status, body, {"X-Error-Message": message, **reason_headers, **(headers or {})})

    def _json(self, value: Any, headers: dict[str, str] | None = None) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _entries(folder: Path, below: str, is_recursive: bool) -> list[dict[str, Any]]:
    start = folder / below
    paths = sorted(start.rglob("*") if is_recursive else start.glob("*"))
    return [
        {"path": path.relative_to(folder).as_posix(), "type": "directory", "oid": "0" * 40, "size": 0}
        if path.is_dir()
        else {
            "path": path.relative_to(folder).as_posix(),
            "type": "file",
            "oid": _digest(path.read_bytes()),
            "size": path.stat().st_size,
        }
        for path in paths
    ]


def _info(repo: str, folder: Path) -> dict[str, Any]:
    files = [{"rfilename": entry["path"]} for entry in _entries(folder, "", True) if entry["type"] == "file"]
    state = {"private": False, "gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": []}
    return {"_id": COMMIT[:24], "id": repo, "sha": COMMIT, "siblings": files, **state}


def _digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
