"""`llama-cli -hf` over TLS: from a hub on this machine, whose certificate is trusted or is not."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sherry_gguf.llama_cpp.found import found_defines

pytestmark = pytest.mark.runtime

REPOSITORY = "someone/tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILE = "tiny-SHERRY.gguf"


@dataclass
class Hub:
    """address; certificate: PEM file; asked: the paths that were asked for."""

    address: str
    certificate: Path
    asked: list[str]


@pytest.fixture
def hub(sherry_gguf_file: Path, tmp_path: Path) -> Iterator[Hub]:
    """Serves one model as the Hugging Face Hub does, over TLS, with a certificate that it signed itself."""
    if "LLAMA_OPENSSL=ON" not in found_defines():
        pytest.skip("needs OpenSSL's headers (Debian: libssl-dev): the programs were built without TLS")
    if shutil.which("openssl") is None:
        pytest.skip("needs the program openssl, to make a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    new = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*new, *names, "-keyout", key, "-out", certificate], check=True, capture_output=True)

    content = sherry_gguf_file.read_bytes()
    entry = {"type": "file", "path": FILE, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
    answers = {
        f"/api/models/{REPOSITORY}/refs": json.dumps({"branches": [{"name": "main", "targetCommit": COMMIT}]}).encode(),
        f"/api/models/{REPOSITORY}/tree/{COMMIT}?recursive=true": json.dumps([entry]).encode(),
        f"/{REPOSITORY}/resolve/{COMMIT}/{FILE}": content,
    }
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            answer = answers.get(self.path)
            asked.append(f"{self.command} {self.path}")
            self.send_response(404 if answer is None else 200)
            self.send_header("Content-Length", str(len(answer or b"")))
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(answers.get(self.path, b""))

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            pass  # a client that does not trust it

    server = Server(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Hub(f"https://localhost:{server.server_port}", certificate, asked)
    server.shutdown()
    thread.join()
    server.server_close()


def answer(runtime, address, cache, **environment):
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "SSL_", "HUGGING"))}
    ours |= {"MODEL_ENDPOINT": address, "HF_HOME": str(cache), "LLAMA_CACHE": str(cache), **environment}
    command = [runtime.program("llama-cli"), "-hf", REPOSITORY, "-p", "My fellow citizens,", "-n", "8", "--single-turn"]
    return subprocess.run(command, env=ours, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)


def test_a_model_comes_over_tls(runtime, hub, sherry_gguf_file, tmp_path):
    done = answer(runtime, hub.address, tmp_path / "cache", SSL_CERT_FILE=str(hub.certificate))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[ Prompt:" in done.stdout
    assert f"GET /{REPOSITORY}/resolve/{COMMIT}/{FILE}" in hub.asked
    (found,) = {path.resolve() for path in (tmp_path / "cache").rglob(FILE)}
    assert found.read_bytes() == sherry_gguf_file.read_bytes()


def test_a_certificate_that_nobody_trusts_is_refused(runtime, hub, tmp_path):
    done = answer(runtime, hub.address, tmp_path / "cache")
    assert done.returncode != 0
    assert "SSL" in done.stdout + done.stderr
    assert hub.asked == []


def test_a_hub_that_does_not_answer_is_said(runtime, hub, tmp_path):
    done = answer(runtime, "https://localhost:1", tmp_path / "cache")
    assert done.returncode != 0
    assert "Could not establish connection" in done.stdout + done.stderr
