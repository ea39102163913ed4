"""The web page that is built into llama-server, in a browser: it loads, and a message is answered by a SHERRY file."""

from __future__ import annotations

import pytest
from browser import find_chromium, opened
from serving import served

from sherry_gguf.llama_cpp.found import found_defines

pytestmark = pytest.mark.runtime

MESSAGE = "My fellow citizens, the state of the Union"
ANSWER = "document.querySelector('[aria-label=\"Assistant message with actions\"] .markdown-content')?.innerText ?? ''"


def test_the_page_answers_a_message(runtime, sherry_gguf_file, tmp_path):
    if "LLAMA_BUILD_UI=ON" not in found_defines():
        pytest.skip("needs Node.js 20.19 or newer, and npm: llama-server was built without its page")
    find_chromium()
    log = tmp_path / "server.log"
    with served(runtime, sherry_gguf_file, log) as address, opened(address, tmp_path / "profile") as page:
        page.wait_for("document.querySelector('textarea') !== null")
        page.value("document.querySelector('textarea').focus()")
        page.type(MESSAGE)
        page.wait_for(f"({ANSWER}).split(/\\s+/).length > 8")
        assert MESSAGE in page.value("document.body.innerText")
