"""A W&B server with just what wandb's client needs: it takes runs, and tests read what it received.

The client is the real one, both `wandb.init` online and `wandb sync`: what arrives here is what W&B would show.
"""

import gzip
import json
import re
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote, unquote

HISTORY, EVENTS, SUMMARY = "wandb-history.jsonl", "wandb-events.jsonl", "wandb-summary.json"
PROJECT = {"id": "1", "name": "tests", "entity": {"id": "1", "name": "tester"}}

Json = dict[str, Any]


@dataclass
class Run:
    """What the server has of a run."""

    about: Json = field(default_factory=dict)
    """displayName, groupName, jobType, tags, notes: the newest values."""
    config: Json = field(default_factory=dict)
    lines: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Files that are sent line by line: name to lines."""
    files: dict[str, bytes] = field(default_factory=dict)
    artifacts: list[Json] = field(default_factory=list)
    exit_codes: list[int] = field(default_factory=list)

    @property
    def history(self) -> list[Json]:
        return [json.loads(line) for line in self.lines[HISTORY]]

    @property
    def summary(self) -> Json:
        summary: Json = json.loads(self.lines[SUMMARY][-1]) if self.lines[SUMMARY] else {}
        return summary


class Server(ThreadingHTTPServer):
    """Listens on a free port of this machine."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.runs: dict[str, Run] = defaultdict(Run)
        self.silent = False
        """Whether to answer nothing after a run has begun."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which a process logs to this server."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": "a" * 40}

    def answer(self, operation: str, given: Json) -> Json:
        """The data of a GraphQL operation; empty for operations that an old server does not have."""
        match operation:
            case "Viewer" | "GetDefaultEntity":
                return {"viewer": {"id": "1", "entity": "tester", "username": "tester", "flags": "{}", "teams": None}}
            case "UpsertBucket":
                inserted = given["name"] not in self.runs
                return {"upsertBucket": {"bucket": self._upsert(given), "inserted": inserted}}
            case "RunResumeStatus":
                known = given["name"] in self.runs
                return {"model": {**PROJECT, "bucket": self._resume_status(given["name"]) if known else None}}
            case "CreateRunFiles":
                files = [{"name": name, **self._upload(given["run"], name)} for name in given["files"]]
                return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}
            case "ArtifactType":
                return {"project": {"artifact": None}}
            case "CreateArtifact":
                artifacts = self.runs[given["input"]["runName"]].artifacts
                artifacts.append(given["input"])
                artifact = {"id": str(len(artifacts)), "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
                return {"createArtifact": {"artifact": artifact}}
            case "CreateArtifactManifest":
                file = {"id": "1", "directUrl": "", **self._upload(given["runName"], f"manifest {given['artifactID']}")}
                return {"createArtifactManifest": {"artifactManifest": {"id": "1", "file": file}}}
            case "CreateArtifactFiles":
                nodes = [{"node": self._artifact_file(file)} for file in given["input"]["artifactFiles"]]
                return {"createArtifactFiles": {"files": {"edges": nodes}}}
            case "CommitArtifact":
                return {"commitArtifact": {"artifact": {"id": given["artifactID"], "digest": ""}}}
        return {}

    def handle_error(self, *_: Any) -> None:
        """Ignores errors: the client leaves its connections open when it exits."""

    def _upsert(self, given: Json) -> Json:
        run = self.runs[given["name"]]
        run.about |= {key: value for key, value in given.items() if value is not None}
        run.config = {key: entry["value"] for key, entry in json.loads(given["config"] or "{}").items()}
        return {
            "id": "1",
            "name": given["name"],
            "displayName": run.about.get("displayName"),
            "config": "{}",
            "historyLineCount": len(run.lines[HISTORY]),
            "project": PROJECT,
        }

    def _resume_status(self, name: str) -> Json:
        run = self.runs[name]
        return {
            "id": "1",
            "name": name,
            "displayName": run.about.get("displayName"),
            "summaryMetrics": json.dumps(run.summary),
            "config": json.dumps({key: {"value": value} for key, value in run.config.items()}),
            "historyLineCount": len(run.lines[HISTORY]),
            "historyTail": json.dumps(run.lines[HISTORY][-1:]),
            "eventsLineCount": len(run.lines[EVENTS]),
            "eventsTail": json.dumps(run.lines[EVENTS][-1:]),
            "logLineCount": 0,
            "tags": run.about.get("tags", []),
            "notes": run.about.get("notes", ""),
            "wandbConfig": '{"t": 1}',
        }

    def _artifact_file(self, file: Json) -> Json:
        names = {"id": "1", "name": file["name"], "displayName": file["name"], "storagePath": file["name"]}
        return {**names, **self._upload("artifacts", file["name"]), "artifact": {"id": file["artifactID"]}}

    def _upload(self, run: str, name: str) -> Json:
        return {"uploadUrl": f"{self.url}/upload/{run}/{quote(name)}", "uploadHeaders": []}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self._body())
        if self.path == "/graphql":
            operation = re.search(r"(?:query|mutation)\s+(\w+)", body["query"])
            assert operation
            self._reply({"data": self.server.answer(operation[1], body.get("variables") or {})})
            return
        if self.server.silent:
            time.sleep(60)
        run = self.server.runs[self.path.split("/")[4]]  # /files/<entity>/<project>/<run>/file_stream
        for name, chunk in (body.get("files") or {}).items():
            run.lines[name][chunk["offset"] :] = chunk["content"]
        if body.get("complete"):
            run.exit_codes.append(body["exitcode"])
        self._reply({"limits": {}})

    def do_PUT(self) -> None:
        _, _, run, name = self.path.split("/", 3)
        content = self._body()
        if run in self.server.runs:  # else it is the content of an artifact
            self.server.runs[run].files[unquote(name)] = content
        self._reply({})

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _reply(self, content: Json) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Prints nothing."""


@contextmanager
def wandb_server() -> Iterator[Server]:
    """A server that runs for the duration of the block."""
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
