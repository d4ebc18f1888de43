"""A Hub on this machine: real HTTP for the real client, in memory, with failures on demand.

It knows what publishing and loading need: repositories, commits, large files, revisions, tokens.
"""

import base64
import hashlib
import json
import re
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "GoodToken" * 4
READ_ONLY = "hf_" + "ReadToken" * 4
LARGE = (".safetensors", ".bin", ".npy")


@dataclass
class Repo:
    """A repository: its commits, oldest first, each with all of its files."""

    private: bool = False
    sdk: str | None = None
    variables: dict[str, str] = field(default_factory=dict)
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)

    def files(self, revision: str = "main") -> dict[str, bytes] | None:
        for oid, files in reversed(self.commits):
            if revision in ("main", oid):
                return files
        return None

    def commit(self, files: dict[str, bytes]) -> str:
        parent = self.commits[-1][0] if self.commits else ""
        names = "".join(f"{name} {git_oid(content)}\n" for name, content in sorted(files.items()))
        oid = hashlib.sha1((parent + names).encode()).hexdigest()
        self.commits.append((oid, files))
        return oid


@dataclass
class Fault:
    """What goes wrong with the next requests that match."""

    method: str
    path: str
    times: int
    status: int | None  # None drops the connection in the middle of the body


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_large(name: str) -> bool:
    return name.endswith(LARGE)


class HubServer(ThreadingHTTPServer):
    """Serves until `close`; `url` is what `HF_ENDPOINT` is set to."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.faults: list[Fault] = []
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def fail(self, method: str, path: str, status: int | None, times: int = 1) -> None:
        """Let requests whose path matches fail; `status` None drops the connection."""
        self.faults.append(Fault(method, path, times, status))

    def close(self) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address) -> None:
        """A client that hangs up is no news."""


class Refusal(Exception):  # noqa: N818
    """An answer that is not a success."""

    def __init__(self, status: int, message: str, headers: dict | None = None, **content):
        super().__init__(message)
        self.status, self.headers, self.content = status, headers or {}, content


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: HubServer

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:  # noqa: N802
        self.answer()

    do_POST = do_PUT = do_HEAD = do_DELETE = do_GET  # noqa: N815

    # One request

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        with self.server.lock:
            self.server.requests.append((self.command, self.path))
            fault = next(
                (
                    f
                    for f in self.server.faults
                    if f.times and f.method == self.command and re.search(f.path, path)
                ),
                None,
            )
            if fault:
                fault.times -= 1
        if fault and fault.status is None:
            self.rfile.read(int(self.headers.get("Content-Length") or 2) // 2)
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        body = self.body()
        try:
            if fault:
                raise Refusal(fault.status, "Injected failure")
            with self.server.lock:
                content, headers = self.route(path, body)
            self.send(200, content, headers)
        except Refusal as refusal:
            headers = {"X-Error-Message": str(refusal)} | refusal.headers
            self.send(refusal.status, {"error": str(refusal)} | refusal.content, headers)

    def body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def send(self, status: int, content, headers: dict[str, str]) -> None:
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            headers = {"Content-Type": "application/json"} | headers
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    # Who asks, and for what

    def needs(self, write: bool) -> None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not token:
            raise Refusal(401, "Invalid username or password.")
        if token not in (TOKEN, READ_ONLY):
            raise Refusal(401, "Invalid credentials in Authorization header")
        if write and token == READ_ONLY:
            raise Refusal(403, "You don't have the rights to write to this namespace")

    def repo(self, kind: str, name: str) -> Repo:
        repo = self.server.repos.get((kind, name))
        if repo is None:
            status = 404 if "Authorization" in self.headers else 401
            raise Refusal(status, "Repository not found", {"X-Error-Code": "RepoNotFound"})
        if repo.private:
            self.needs(write=False)
        return repo

    def files(self, kind: str, name: str, revision: str) -> tuple[str, dict[str, bytes]]:
        repo = self.repo(kind, name)
        files = repo.files(revision)
        if files is None:
            code = {"X-Error-Code": "RevisionNotFound"}
            raise Refusal(404, f"Invalid rev id: {revision}", code)
        oid = next(o for o, f in reversed(repo.commits) if f is files)
        return oid, files

    def route(self, path: str, body: bytes):
        method = "GET" if self.command == "HEAD" else self.command
        for verb, pattern, handle in ROUTES:
            match = re.fullmatch(pattern, path)
            if verb == method and match:
                answer = handle(self, body, **match.groupdict())
                return answer if isinstance(answer, tuple) else (answer, {})
        raise Refusal(404, f"This server does not know {self.command} {path}")

    # Routes

    def whoami(self, body: bytes):
        self.needs(write=False)
        return {"name": "org", "type": "user", "orgs": []}

    def create(self, body: bytes):
        self.needs(write=True)
        wish = json.loads(body)
        kind = wish.get("type") or "model"
        name = f"{wish['organization'] or 'org'}/{wish['name']}"
        if not name.startswith("org/"):
            raise Refusal(403, f"You don't have the rights to create a {kind} under {name}")
        prefix = "" if kind == "model" else f"{kind}s/"
        url = f"{self.server.url}/{prefix}{name}"
        if (kind, name) in self.server.repos:
            raise Refusal(409, "You already created this repo", url=url)
        private = wish.get("visibility") == "private" or wish.get("private", False)
        repo = self.server.repos[kind, name] = Repo(private, wish.get("sdk"))
        repo.commit({".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
        return {"url": url, "name": name, "id": "0" * 24}

    def validate(self, body: bytes):
        wish = json.loads(body)
        text = wish["content"]
        errors = []
        if not re.match(r"---\n.+?\n---\n", text, re.S):
            errors.append({"message": "README.md has no metadata"})
        if wish["repoType"] == "space":
            errors += [
                {"message": f"`{name}` is required"}
                for name in ("sdk", "app_file", "title")
                if not re.search(rf"^{name}: \S", text, re.M)
            ]
        if errors:
            raise Refusal(400, "Invalid metadata", errors=errors, warnings=[])
        return {"errors": [], "warnings": []}

    def preupload(self, body: bytes, kind: str, name: str, revision: str):
        self.needs(write=True)
        _, there = self.files(kind, name, revision)
        answer = []
        for file in json.loads(body)["files"]:
            large, old = is_large(file["path"]), there.get(file["path"])
            oid = None
            if old is not None:
                oid = hashlib.sha256(old).hexdigest() if large else git_oid(old)
            mode = "lfs" if large else "regular"
            answer.append(
                {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}
            )
        return {"files": answer}

    def batch(self, body: bytes, kind: str, name: str):
        self.needs(write=True)
        objects = []
        for wish in json.loads(body)["objects"]:
            entry = {"oid": wish["oid"], "size": wish["size"]}
            if wish["oid"] not in self.server.objects:
                href = f"{self.server.url}/lfs/{wish['oid']}"
                entry["actions"] = {"upload": {"href": href, "header": {}}}
            objects.append(entry)
        return {"transfer": "basic", "objects": objects}

    def upload(self, body: bytes, oid: str):
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refusal(400, "The content does not match its oid")
        self.server.objects[oid] = body
        return b""

    def commit(self, body: bytes, kind: str, name: str, revision: str):
        self.needs(write=True)
        _, there = self.files(kind, name, revision)
        files = dict(there)
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                if value["oid"] not in self.server.objects:
                    raise Refusal(400, f"{value['path']} was never uploaded")
                files[value["path"]] = self.server.objects[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        oid = self.server.repos[kind, name].commit(files)
        return {"commitUrl": f"{self.server.url}/{name}/commit/{oid}", "commitOid": oid}

    def variable(self, body: bytes, kind: str, name: str):
        self.needs(write=True)
        wish = json.loads(body)
        self.repo(kind, name).variables[wish["key"]] = wish["value"]
        return {wish["key"]: {"key": wish["key"], "value": wish["value"]}}

    def info(self, body: bytes, kind: str, name: str, revision: str = "main"):
        oid, files = self.files(kind, name, revision)
        return {
            "_id": "0" * 24, "id": name, "modelId": name, "sha": oid, "tags": [],
            "private": self.repo(kind, name).private, "downloads": 0, "likes": 0,
            "siblings": [{"rfilename": file} for file in files],
        }  # fmt: skip

    def tree(self, body: bytes, kind: str, name: str, revision: str, folder: str | None = None):
        _, files = self.files(kind, name, revision)
        if folder:  # every repository here is flat
            raise Refusal(404, f"{folder} is not there", {"X-Error-Code": "EntryNotFound"})
        return [self.entry(file, content) for file, content in sorted(files.items())]

    def paths(self, body: bytes, kind: str, name: str, revision: str):
        _, files = self.files(kind, name, revision)
        wanted = json.loads(body)["paths"]
        return [self.entry(file, files[file]) for file in wanted if file in files]

    @staticmethod
    def entry(file: str, content: bytes) -> dict:
        entry = {"type": "file", "path": file, "size": len(content), "oid": git_oid(content)}
        if is_large(file):
            oid = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 134}
        return entry

    def resolve(self, body: bytes, name: str, revision: str, file: str, kind: str = "model"):
        oid, files = self.files(kind or "model", name, revision)
        if file not in files:
            headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": oid}
            raise Refusal(404, f"{file} is not in {name}", headers)
        content = files[file]
        etag = hashlib.sha256(content).hexdigest() if is_large(file) else git_oid(content)
        return content, {"ETag": f'"{etag}"', "X-Repo-Commit": oid}


API = r"/api/(?P<kind>model|space|dataset)s/(?P<name>[^/]+/[^/]+)"
ROUTES = [
    ("GET", "/api/whoami-v2", Handler.whoami),
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate),
    ("POST", API + "/preupload/(?P<revision>.+)", Handler.preupload),
    ("POST", API + "/commit/(?P<revision>.+)", Handler.commit),
    ("POST", API + "/paths-info/(?P<revision>.+)", Handler.paths),
    ("POST", API + "/variables", Handler.variable),
    ("GET", API + "/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", Handler.tree),
    ("GET", API + "/revision/(?P<revision>.+)", Handler.info),
    ("GET", API, Handler.info),
    ("POST", r"/(?:(?P<kind>space|dataset)s/)?(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch",
     Handler.batch),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", Handler.upload),
    ("GET", r"/(?:(?P<kind>space|dataset)s/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)"
     r"/(?P<file>.+)", Handler.resolve),
]  # fmt: skip
