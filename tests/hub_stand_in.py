"""A Hugging Face hub on this machine: what its clients really ask, answered from repositories of a few kB.

The routes, headers and error codes are those that huggingface_hub 2.4, datasets 5.2 and transformers 5.23 ask
for and understand. Large files lie on a second origin, the CDN, to which the hub redirects. Repositories may
be gated or private, and faults are put in a request's way: any status, slow answers, bodies that are cut.
"""

import functools
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import sleep
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".bin", ".zip", ".parquet", ".gguf")  # which the hub keeps on its CDN
KINDS = {"models": "model", "datasets": "dataset"}
API = re.compile(
    r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info|auth-check)(?:/([^/]+)/?(.*))?)?"
)
RESOLVE = re.compile(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
READER = "may-read"
"""The token of somebody who has been given access to everything."""
STRANGER = "nobody-special"
"""The token of somebody whom the hub knows, and who has been given access to nothing."""


@dataclass
class Repository:
    """A repository: its files at its last commit."""

    kind: str
    files: dict[str, bytes]
    gated: bool = False
    private: bool = False
    earlier: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Commit → the files that it had."""
    commit: str = ""
    """A sha that follows from the content."""

    def __post_init__(self) -> None:
        digest = hashlib.sha1()
        for name, content in sorted(self.files.items()):
            digest.update(name.encode() + b"\0" + content)
        self.commit = digest.hexdigest()

    def find(self, revision: str) -> dict[str, bytes] | None:
        return self.files if revision in ("main", self.commit) else self.earlier.get(revision)

    def push(self, **files: bytes) -> None:
        """Another commit, with these files changed."""
        self.earlier[self.commit] = dict(self.files)
        self.files |= files
        self.__post_init__()


@dataclass
class Fault:
    """What goes wrong with the next requests whose method and path a pattern finds."""

    pattern: str
    times: int = 10**9
    status: int = 0
    """Answered in place of what was asked for."""
    headers: dict[str, str] = field(default_factory=dict)
    slow: float = 0.0
    """Seconds before the answer."""
    cut: int = -1
    """Bytes of the body after which the connection is closed."""


class HubStandIn:
    """A hub and its CDN, each with a port of its own, until it is closed."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.faults: list[Fault] = []
        self.log: list[tuple[str, str, int, int]] = []
        """Method, path, status and bytes of the body, of every request to either origin."""
        self._lock = threading.Lock()
        self._servers = [self._serve(Handler), self._serve(CdnHandler)]

    def _serve(self, handler: type) -> ThreadingHTTPServer:
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        server.hub = self
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return server

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._servers[0].server_port}"

    @property
    def cdn(self) -> str:
        return f"http://127.0.0.1:{self._servers[1].server_port}"

    def put(self, name: str, files: dict[str, bytes], kind: str = "dataset", **rights: bool) -> Repository:
        repository = Repository(kind, dict(files), **rights)
        self.repositories[kind, name] = repository
        return repository

    def fail(self, pattern: str, **how) -> Fault:
        fault = Fault(pattern, **how)
        self.faults.append(fault)
        return fault

    def clear(self) -> None:
        """Forget what was asked and what was to fail."""
        self.log.clear()
        self.faults.clear()

    def count(self, pattern: str = "") -> int:
        """Requests whose method and path a pattern finds."""
        return sum(bool(re.search(pattern, f"{method} {path}")) for method, path, *_ in self.log)

    @property
    def sent(self) -> int:
        """Bytes of all bodies."""
        return sum(size for *_, size in self.log)

    def take_fault(self, asked: str) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                if fault.times and re.search(fault.pattern, asked):
                    fault.times -= 1
                    return fault
        return None

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()


class Handler(BaseHTTPRequestHandler):
    """Answers as the hub does."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.handle_request()

    def do_GET(self):
        self.handle_request()

    def do_POST(self):
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.handle_request()

    def handle_request(self):
        self.cut = -1
        fault = self.server.hub.take_fault(f"{self.command} {self.path}")
        if fault:
            sleep(fault.slow)
            self.cut = fault.cut
            if fault.status:
                return self.reply(fault.status, b'{"error": "made to fail"}', fault.headers)
        self.answer()

    def answer(self):
        url = urlsplit(self.path)
        path, query = unquote(url.path), parse_qs(url.query)
        if self.token not in ("", READER, STRANGER):
            wrong = "Invalid credentials in Authorization header"
            self.refuse(401, "", wrong)
        elif found := RESOLVE.fullmatch(path):
            self.resolve(*found.groups())
        elif found := API.fullmatch(path):
            self.inform(*found.groups(), query)
        else:
            self.refuse(404, "", f"no such route: {path}")

    @property
    def token(self):
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def find_files(self, kind, name, revision):
        """The repository and its files at a revision; None once the refusal is sent."""
        repository = self.server.hub.repositories.get((kind, name))
        if repository is None or (repository.private and self.token != READER):
            self.refuse(404 if self.token else 401, "RepoNotFound", "Repository not found")
        elif (files := repository.find(revision)) is None:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return repository, files
        return None

    def inform(self, plural, name, what, revision, path, query):
        if not (found := self.find_files(KINDS[plural], name, revision or "main")):
            return
        repository, files = found
        if what == "auth-check":
            self.send_json({}) if self.may_read(repository, name) else None
        elif what == "tree":
            inside = f"{path.rstrip('/')}/" if path else ""
            rows = list_tree(files, inside, query.get("recursive", ["false"])[0].lower() in ("true", "1"))
            if inside and not rows:
                return self.refuse(404, "EntryNotFound", f"{path} does not exist")
            self.send_json(rows)
        elif what == "paths-info":
            asked = parse_paths(self.body, self.headers.get("Content-Type", ""))
            self.send_json([describe_file(each, files[each]) for each in asked if each in files])
        else:
            commit = repository.commit if revision in (None, "main") else revision
            gated = "auto" if repository.gated else False
            siblings = [{"rfilename": each} for each in files]
            about = {"id": name, "sha": commit, "gated": gated, "private": repository.private}
            self.send_json(about | {"siblings": siblings, "tags": [], "downloads": 0, "likes": 0})

    def resolve(self, plural, name, revision, path):
        if not (found := self.find_files(KINDS[plural or "models"], name, revision)):
            return
        repository, files = found
        commit = repository.commit if revision == "main" else revision
        about = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if not self.may_read(repository, name):
            return
        if path not in files:
            self.refuse(404, "EntryNotFound", "Entry not found", about)
        elif path.endswith(LARGE):
            digest = name_content(files[path])
            about |= {"X-Linked-Size": str(len(files[path])), "X-Linked-ETag": f'"{digest}"'}
            place = f"{self.server.hub.cdn}/{repository.kind}/{name}/{commit}/{path}"
            self.reply(302, b"", about | {"Location": place})
        else:
            etag = hashlib.sha1(files[path]).hexdigest()
            self.send_range(files[path], about | {"ETag": f'"{etag}"'})

    def may_read(self, repository, name):
        """Whether whoever asks may have the files; if not, the refusal is sent."""
        if repository.gated and self.token != READER:
            self.refuse(403 if self.token else 401, "GatedRepo", f"Access to {name} is restricted")
            return False
        return True

    def send_range(self, content, headers):
        """The content, or the part of it that was asked for."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            return self.reply(200, content, headers)
        start, end = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
        if start >= len(content):
            return self.reply(416, b"", headers | {"Content-Range": f"bytes */{len(content)}"})
        place = f"bytes {start}-{end}/{len(content)}"
        self.reply(206, content[start : end + 1], headers | {"Content-Range": place})

    def send_json(self, value):
        self.reply(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def refuse(self, status, code, message, headers=None):
        about = {"X-Error-Code": code} if code else {}
        body = json.dumps({"error": message}).encode()
        self.reply(status, body, {**about, "X-Error-Message": message, **(headers or {})})

    def reply(self, status, content, headers):
        sent = b"" if self.command == "HEAD" else content if self.cut < 0 else content[: self.cut]
        self.server.hub.log.append((self.command, self.path, status, len(sent)))
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(sent)
        if 0 <= self.cut < len(content):
            self.close_connection = True

    def log_message(self, *_):
        """Stay silent."""


class CdnHandler(Handler):
    """Gives files to whoever comes, and wants no token."""

    def answer(self):
        kind, owner, name, commit, path = unquote(self.path).removeprefix("/").split("/", 4)
        assert "Authorization" not in self.headers, "the hub's token went to another origin"
        files = self.server.hub.repositories[kind, f"{owner}/{name}"].find(commit)
        content = files[path]
        etag = name_content(content)
        self.send_range(content, {"ETag": f'"{etag}"', "Accept-Ranges": "bytes"})


@functools.cache
def name_content(content):
    """What the hub calls a large file's content."""
    return hashlib.sha256(content).hexdigest()


def describe_file(path, content):
    about = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
    if path.endswith(LARGE):
        digest = name_content(content)
        about["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
    return about


def list_tree(files, inside, recursive):
    """The rows of a folder's listing: its files, and its folders."""
    rows, folders = [], set()
    for path, content in sorted(files.items()):
        rest = path.removeprefix(inside)
        if not path.startswith(inside):
            continue
        parts = rest.split("/")
        depth = len(parts) - 1 if recursive else min(1, len(parts) - 1)
        folders |= {inside + "/".join(parts[: at + 1]) for at in range(depth)}
        if recursive or len(parts) == 1:
            rows.append(describe_file(path, content))
    return [
        {"type": "directory", "path": each, "size": 0, "oid": "0" * 40} for each in sorted(folders)
    ] + rows


def parse_paths(body, kind):
    """The paths that a request for facts of files names."""
    if "json" in kind:
        paths = json.loads(body)["paths"]
        return paths if isinstance(paths, list) else [paths]
    return parse_qs(body.decode())["paths"]


@contextmanager
def serve_hub(folder, monkeypatch):
    """A stand-in that is the hub of this process, with an empty cache before it; pauses take no time."""
    import datasets
    from huggingface_hub import close_session, constants, file_download

    from adept_ray.data import hub_client

    hub = HubStandIn()
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    places = {"ENDPOINT": hub.endpoint, "HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_CACHE": str(folder)}
    for name, value in {**places, "HF_HUB_OFFLINE": False, "HF_TOKEN_PATH": str(folder / "token")}.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.endpoint)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder / "datasets"))
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", str(folder / "datasets" / "downloads"))
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: sleep(min(seconds, 0.001)))
    monkeypatch.setattr(hub_client, "PATIENCE_S", 0.5)
    monkeypatch.setattr(hub_client, "FIRST_PAUSE_S", 0.05)
    hub_client.use_patient_client()
    hub.said = []
    hub_client.PATIENCE.__init__()
    hub_client.PATIENCE.say = hub.said.append
    try:
        yield hub
    finally:
        close_session()
        hub.close()
