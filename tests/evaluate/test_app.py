"""The app serves this machine: its form takes a clip, its pages show what the answer looked at."""

import contextlib
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from urllib.parse import quote

import pytest

from data_pipeline.av_events.clips import make_clip
from latentomni_jax.evaluate.pages import app
from latentomni_jax.layout import InputError
from tests.browser import browser, needs_chromium
from tests.evaluate.runs import make_explored, make_line, make_run
from tests.processes import ROOT, environment

needs_gradio = pytest.mark.skipif(
    not __import__("importlib").util.find_spec("gradio"),
    reason="the app needs gradio (pip install gradio)",
)
PATIENCE = 120.0  # seconds
HOSTILE = "What <img src=x onerror=taken=1> is heard?"
# Answers with a made-up look inside, or says that the clip is broken.
SERVER = """
import sys
from pathlib import Path
from latentomni_jax.evaluate.pages.app import serve
from latentomni_jax.layout import InputError
from tests.evaluate.runs import make_explored

def ask(path, question, choices, latents):
    if "fail" in question:
        raise InputError(f"{path}: <img src=x onerror=taken=1> is broken")
    asked = {"question": question, "choices": [*choices, latents], "expected": None, "right": None}
    return make_explored(path, "asked") | asked

try:
    serve(lambda: ask, "A small model", run=Path(sys.argv[1]), latents="force")
except KeyboardInterrupt:
    print("ended")
"""


def test_pages_are_kept_as_long_as_there_is_room(tmp_path, monkeypatch):
    monkeypatch.setattr(app, "_KEPT", 2)
    shelf = app.Shelf()
    addresses = [shelf.answer(make_explored(tmp_path / f"{i}.mp4", "a")) for i in range(3)]
    assert addresses == ["/looks/1", "/looks/2", "/looks/3"] and list(shelf.pages) == [2, 3]
    assert '"/clips/2"' in shelf.pages[3] and str(tmp_path) not in shelf.pages[3]
    assert shelf.address(tmp_path / "1.mp4") == "/clips/1"
    assert shelf.clips == [tmp_path / f"{i}.mp4" for i in range(3)]


def test_a_question_that_cannot_be_asked():
    for given, said in [
        ((None, "What?", ""), "choose a clip"),
        (("a.mp4", " ", ""), "write a question"),
        (("a.mp4", "What?", "x\n" * 27), "27 options"),
    ]:
        with pytest.raises(InputError, match=said):
            app._checked(*given)
    path, question, choices = app._checked("a.mp4", " What? ", " one \n\ntwo")
    assert (path.name, question, choices) == ("a.mp4", "What?", ["one", "two"])


def test_mistakes_are_found_before_the_model_is_loaded(tmp_path, monkeypatch):
    with socket.socket() as taken:
        taken.bind((app.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"--port {port} cannot be had"):
            app.serve(lambda: pytest.fail("loaded"), "title", port=port)
    with pytest.raises(InputError, match="no complete run"):
        app.serve(lambda: pytest.fail("loaded"), "title", run=tmp_path)
    monkeypatch.setattr(app.os, "environ", {})
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(InputError, match=r"needs gradio: pip install 'latentomni_jax\[app\]'"):
        app.serve(lambda: pytest.fail("loaded"), "title")


@contextlib.contextmanager
def serving(run, temporary):
    """The address of an app, which keeps uploads in a folder and leaves nothing in it."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(run)],
        cwd=ROOT, env=environment() | {"TMPDIR": str(temporary)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    watch = threading.Timer(PATIENCE, process.kill)
    watch.start()
    try:
        told = process.stdout.readline()
        assert told.startswith("http://127.0.0.1:"), process.stderr.read()
        yield told.split()[0]
    finally:
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate()
        watch.cancel()
    assert (output, errors) == ("ended\n", "")
    assert not list(temporary.glob("latentomni-app-*"))


def get(url, **headers):
    """Status, headers and bytes of an answer."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as reply:
            return reply.status, reply.headers, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def ask(tab):
    button = "[...document.querySelectorAll('button')].find((x) => x.textContent.trim() === 'Ask')"
    tab.wait(f"Boolean({button})")
    tab.ask(f"{button}.click()")


@needs_gradio
@needs_chromium
@pytest.mark.slow
def test_a_clip_is_asked_about_and_looked_into(tmp_path):
    clip = tmp_path / "a clip.mp4"
    make_clip(clip, seconds=4.0, size=(96, 64))
    run = make_run(tmp_path / "run", [make_line(1, "right")], explored=[make_explored(clip, "q1")])
    (tmp_path / "profile").mkdir()
    with serving(run, tmp_path) as url, browser(tmp_path / "profile") as tab:
        only_this_machine_is_served(url, clip)
        the_form_answers_and_complains(tab, url, clip)
        the_page_of_the_answer_is_an_explorer(tab, url)


def only_this_machine_is_served(url, clip):
    assert get(f"{url}/")[0] == 200
    assert get(f"{url}/", Host="elsewhere.example")[0] == 400
    status, headers, data = get(f"{url}/clips/0", Range="bytes=4-7")
    assert (status, headers["Content-Type"], data) == (206, "video/mp4", b"ftyp")
    assert get(f"{url}/clips/0")[2] == clip.read_bytes()
    for gone in (
        "clips/1",
        "clips/-1",
        "looks/2",
        "clips/x",
        f"gradio_api/file={quote(str(clip))}",
    ):
        assert get(f"{url}/{gone}")[0] in (403, 404, 422), gone
    assert b"run: q1 (right)" in get(f"{url}/looks/1")[2]


def the_form_answers_and_complains(tab, url, clip):
    tab.open(f"{url}/")
    tab.wait("Boolean(document.querySelector('input[type=file]'))")
    assert not tab.errors  # nothing was asked for that is elsewhere
    ask(tab)
    tab.wait("document.body.innerText.includes('choose a clip first')")
    document = tab.call("DOM.getDocument")["root"]["nodeId"]
    place = tab.call("DOM.querySelector", nodeId=document, selector="input[type=file]")
    tab.call("DOM.setFileInputFiles", files=[str(clip)], **place)
    tab.wait("document.body.innerText.includes('a clip')")
    tab.ask("document.querySelectorAll('textarea')[0].focus()")
    tab.call("Input.insertText", text=HOSTILE)
    tab.ask("document.querySelectorAll('textarea')[1].focus()")
    tab.call("Input.insertText", text="a bell\na dog")
    ask(tab)
    tab.wait("""Boolean(document.querySelector('iframe[src="/looks/2"]'))""")
    assert tab.ask("document.querySelector('iframe').sandbox.value") == "allow-scripts"
    tab.ask("document.querySelectorAll('textarea')[0].focus()")
    tab.call("Input.insertText", text=" fail")
    ask(tab)
    tab.wait(
        "document.body.innerText.includes('a clip.mp4: <img src=x onerror=taken=1> is broken')"
    )
    assert tab.ask("typeof taken") == "undefined"
    # Gradio's own client warns so when it has been answered.
    assert {re.sub(r".*Method not implemented.*", "", one) for one in tab.errors} <= {""}
    tab.errors.clear()


def the_page_of_the_answer_is_an_explorer(tab, url):
    tab.open(f"{url}/looks/2")
    tab.wait("video !== null && video.readyState >= 2")
    assert tab.ask("byId('asked').textContent") == HOSTILE
    choices = "[...document.querySelectorAll('#options li')].map((one) => one.textContent)"
    assert tab.ask(choices) == ["a bell", "a dog", "force"]
    assert tab.ask("byId('verdict').textContent") == "Answer: B"
    tab.click("#asked")
    tab.press("ArrowDown")
    tab.press("ArrowDown")
    assert tab.ask("[piece, slot]") == [1, 1]
    tab.press(" ")
    tab.wait("!video.paused && video.currentTime > 0.3")
    assert tab.ask("typeof taken") == "undefined" and not tab.errors
