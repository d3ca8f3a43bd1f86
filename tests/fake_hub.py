"""A small Hub on loopback: the parts of its HTTP interface that pushing and pulling a model use.

``huggingface_hub`` speaks to it as to the real one, by ``HF_ENDPOINT``. Uploads go through git-LFS
(``HF_HUB_DISABLE_XET=1``), since Xet's storage protocol is a service of its own.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_test_token"
TREE = dict[str, bytes]


@dataclass
class Repo:
    private: bool
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, TREE] = field(default_factory=dict)

    def tree(self, revision: str) -> tuple[str, TREE] | None:
        commit = self.branches.get(revision, revision)
        return (commit, self.commits[commit]) if commit in self.commits else None

    def commit(self, revision: str, tree: TREE) -> str:
        digest = hashlib.sha1(f"{len(self.commits)}{revision}".encode())
        for name, content in sorted(tree.items()):
            digest.update(name.encode() + content)
        self.commits[digest.hexdigest()] = tree
        self.branches[revision] = digest.hexdigest()
        return digest.hexdigest()


@dataclass
class Hub:
    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def put(self, repo: str, files: TREE, *, private: bool = False) -> str:
        self.repos.setdefault(repo, Repo(private=private))
        return self.repos[repo].commit("main", files)

    def files(self, repo: str, revision: str = "main") -> TREE:
        found = self.repos[repo].tree(revision)
        assert found is not None
        return found[1]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *arguments: Any) -> None:
        pass

    # ---- answers ---------------------------------------------------------------------------------

    def answer(
        self, content: bytes, headers: dict[str, str] | None = None, status: int = 200
    ) -> None:
        self.send_response(status)
        headers = headers or {}
        self.send_header("Content-Length", headers.pop("Content-Length", str(len(content))))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def json(self, value: Any, status: int = 200) -> None:
        self.answer(json.dumps(value).encode(), {"Content-Type": "application/json"}, status)

    def refuse(self, status: int, code: str, message: str) -> None:
        self.answer(b"", {"X-Error-Code": code, "X-Error-Message": message}, status)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def writer(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def repo(self, name: str) -> Repo | None:
        found = self.hub.repos.get(name)
        if found is None or (found.private and not self.writer()):
            self.refuse(401, "RepoNotFound", "Repository not found")
            return None
        return found

    # ---- routes ----------------------------------------------------------------------------------

    def route(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        for method, pattern, name in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method:
                getattr(self, name)(**match.groupdict())
                return
        self.refuse(404, "EntryNotFound", "no such page")

    do_GET = do_HEAD = do_POST = do_PUT = route

    def create(self) -> None:
        asked = json.loads(self.body())
        if not self.writer():
            self.refuse(401, "", "Invalid username or password.")
            return
        name = f"{asked['organization']}/{asked['name']}"
        # huggingface_hub says "visibility" since 2.0 and "private" before.
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        url = f"{self.hub.url}/{name}"
        if name in self.hub.repos:
            self.json({"url": url, "error": "You already created this model repo"}, 409)
            return
        self.hub.put(name, {".gitattributes": b""}, private=private)
        self.json({"url": url, "name": name})

    def validate(self) -> None:
        text = json.loads(self.body())["content"]
        found = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
        metadata = yaml.safe_load(found[1]) if found else {}
        licence = metadata.get("license")
        errors = [] if licence in (None, "apache-2.0", "mit", "other") else ["license is not known"]
        self.json(
            {"errors": [{"message": error} for error in errors], "warnings": []},
            400 if errors else 200,
        )

    def branch(self, repo: str, name: str) -> None:
        self.body()
        found = self.repo(repo)
        if found is None:
            return
        if name in found.branches:
            self.json({"error": "Reference already exists"}, 409)
            return
        found.branches[name] = found.branches["main"]
        self.json({})

    def preupload(self, repo: str, revision: str) -> None:
        files = json.loads(self.body())["files"]
        self.json(
            {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                        "shouldIgnore": False,
                    }
                    for file in files
                ]
            }
        )

    def batch(self, repo: str) -> None:
        asked = json.loads(self.body())
        self.json(
            {
                "transfer": "basic",
                "objects": [
                    {
                        **entry,
                        "actions": {"upload": {"href": f"{self.hub.url}/objects/{entry['oid']}"}},
                    }
                    for entry in asked["objects"]
                ],
            }
        )

    def store(self, oid: str) -> None:
        content = self.body()
        assert hashlib.sha256(content).hexdigest() == oid
        self.hub.objects[oid] = content
        self.answer(b"")

    def commit(self, repo: str, revision: str) -> None:
        lines = [json.loads(line) for line in self.body().splitlines()]
        found = self.repo(repo)
        if found is None:
            return
        if not self.writer():
            self.refuse(403, "", "You are not allowed to write here.")
            return
        current = found.tree(revision)
        assert current is not None
        tree = dict(current[1])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                tree[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                tree[value["path"]] = self.hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del tree[value["path"]]
        oid = found.commit(revision, tree)
        self.json(
            {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{repo}/commit/{oid}"}
        )

    def info(self, repo: str, revision: str | None = None) -> None:
        found = self.repo(repo)
        if found is None:
            return
        current = found.tree(revision or "main")
        if current is None:
            self.refuse(404, "RevisionNotFound", "Invalid rev id")
            return
        sha, tree = current
        siblings = [{"rfilename": name} for name in tree]
        self.json({"id": repo, "sha": sha, "private": found.private, "siblings": siblings})

    def listing(self, repo: str, revision: str) -> None:
        found = self.repo(repo)
        current = None if found is None else found.tree(revision)
        if current is None:
            return
        self.json(
            [
                {
                    "type": "file",
                    "path": name,
                    "size": len(content),
                    "oid": hashlib.sha1(content).hexdigest(),
                }
                for name, content in current[1].items()
            ]
        )

    def file(self, repo: str, revision: str, name: str) -> None:
        found = self.repo(repo)
        current = None if found is None else found.tree(revision)
        if current is None:
            return
        sha, tree = current
        if name not in tree:
            self.refuse(404, "EntryNotFound", "no such file")
            return
        etag = hashlib.sha1(tree[name]).hexdigest()
        self.answer(tree[name], {"ETag": f'"{etag}"', "X-Repo-Commit": sha})


REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
REVISION = r"(?P<revision>[\w.-]+)"
ROUTES = [
    (("POST",), r"/api/repos/create", "create"),
    (("POST",), r"/api/validate-yaml", "validate"),
    (("POST",), rf"/api/models/{REPO}/branch/(?P<name>[\w.-]+)", "branch"),
    (("POST",), rf"/api/models/{REPO}/preupload/{REVISION}", "preupload"),
    (("POST",), rf"/{REPO}\.git/info/lfs/objects/batch", "batch"),
    (("PUT",), r"/objects/(?P<oid>\w+)", "store"),
    (("POST",), rf"/api/models/{REPO}/commit/{REVISION}", "commit"),
    (("GET",), rf"/api/models/{REPO}", "info"),
    (("GET",), rf"/api/models/{REPO}/revision/{REVISION}", "info"),
    (("GET",), rf"/api/models/{REPO}/tree/{REVISION}", "listing"),
    (("GET", "HEAD"), rf"/{REPO}/resolve/{REVISION}/(?P<name>.+)", "file"),
]


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A Hub on a free port of loopback, for as long as the context lasts."""
    hub = Hub()
    handler = type("HubHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
