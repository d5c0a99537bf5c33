"""A page of this machine's own browser: ask about a clip, and look inside the answer.

Gradio has the form; answers are pages of `explorer`, in a frame that may run their script and
nothing else. Only this machine is served: the port is bound to 127.0.0.1, and requests that name
another host (a page of the web whose name points here) are refused. Nothing is fetched or told.
"""

from __future__ import annotations

import collections
import html
import os
import signal
import socket
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.trajectories import Trajectory
from latentomni_jax.evaluate.answers import prompt_of
from latentomni_jax.evaluate.explore import read_explored
from latentomni_jax.evaluate.pages import explorer, run_report
from latentomni_jax.evaluate.runs import read_runs
from latentomni_jax.layout import InputError
from latentomni_jax.media.processor import LETTERS, clip_part
from latentomni_jax.media.video import read_clip
from latentomni_jax.model import LatentOmni

HOST = "127.0.0.1"
LATENTS = ("auto", "force", "off")
Ask = Callable[[Path, str, Sequence[str], str], dict[str, Any]]
_UPLOAD = "512mb"  # of one clip
_KEPT = 32  # pages of answers
_WAITING = 8  # questions that may wait for the one in hand


def asker(model: LatentOmni, **options: Any) -> Ask:
    """Answers (clip, question, choices, latents) with what `explorer` shows.

    Args:
      options: of `LatentOmni.generate`; whether there are latents, each question says.
    """
    from latentomni_jax.evaluate.explore import explored

    def ask(path: Path, text: str, choices: Sequence[str], latents: str) -> dict[str, Any]:
        clip = read_clip(path, model.media)
        kind = "audio" if clip.frames is None else "video"
        question = Trajectory(
            id="asked", question=text, answer="", kind=kind, path=str(path), choices=tuple(choices)
        )
        part = clip_part(clip, model.media)
        prompt = prompt_of(model, question, path.parent, read=lambda path, kind: part)
        how: dict[str, Any] = options | {"latents": latents}
        generation = model.generate([prompt], **how)[0]
        return explored(model, question, prompt, generation, path, clip)

    return ask


class Shelf:
    """Pages and clips by number, as the server hands them out; of pages the last ones only."""

    def __init__(self):
        self.clips: list[Path] = []
        self.pages: collections.OrderedDict[int, str] = collections.OrderedDict()
        self._count = 0

    def address(self, clip: Path) -> str:
        """The address of a clip, which can be asked for from now on. Raises InputError where the
        file is none."""
        explorer.kind_of(clip)
        if clip not in self.clips:
            self.clips.append(clip)
        return f"/clips/{self.clips.index(clip)}"

    def put(self, page: str) -> str:
        """Keeps a page. Returns its address."""
        self._count += 1
        self.pages[self._count] = page
        if len(self.pages) > _KEPT:
            self.pages.popitem(last=False)
        return f"/looks/{self._count}"

    def answer(self, item: dict[str, Any]) -> str:
        """Keeps the page of an answer. Returns its address."""
        url = self.address(Path(item["video"]))
        return self.put(explorer.page("Answer", "", [("", item, url)]))


def serve(
    load: Callable[[], Ask],
    title: str,
    *,
    run: Path | None = None,
    port: int = 0,
    latents: str = LATENTS[0],
) -> None:
    """Serves until it is interrupted, and says where.

    Args:
      load: who answers; called when all else is found to be in order.
      title: of the page. run: a run to look at, too. port: 0 takes a free one.
      latents: what is chosen at first.

    Raises:
      InputError: Gradio is missing, the port is taken, or the run is damaged.
    """
    shelf = Shelf()
    told = None if run is None else shelf.put(_run_page(run, shelf))
    with tempfile.TemporaryDirectory(prefix="latentomni-app-") as uploads, socket.socket() as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            door.bind((HOST, port))
            door.listen()
        except (OSError, OverflowError) as error:
            raise InputError(f"--port {port} cannot be had ({error}); name another") from error
        gradio = _gradio(uploads)
        import uvicorn

        app = _app(gradio, load(), title, shelf, told, latents)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # or uploads would stay
        print(f"http://{HOST}:{door.getsockname()[1]}  (Ctrl-C ends)", flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[door])


def _run_page(run: Path, shelf: Shelf) -> str:
    runs = read_runs([run])
    found = [(runs[0], read_explored(path)) for path in runs[0].explored]
    return run_report.page(runs, found, shelf.address)


def _app(gradio: Any, ask: Ask, title: str, shelf: Shelf, run: str | None, chosen: str) -> Any:
    """The server: Gradio's form, and the pages and clips of the shelf."""
    from fastapi import FastAPI, HTTPException
    from fastapi.responses import FileResponse, HTMLResponse
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    app = FastAPI(openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])

    @app.get("/looks/{number}")
    def look(number: int) -> HTMLResponse:
        if number not in shelf.pages:
            raise HTTPException(404, "this page is gone; ask again")
        return HTMLResponse(shelf.pages[number])

    @app.get("/clips/{number}")
    def clip(number: int) -> FileResponse:
        if not 0 <= number < len(shelf.clips) or not shelf.clips[number].is_file():
            raise HTTPException(404, "there is no such clip")
        path = shelf.clips[number]
        headers = {"X-Content-Type-Options": "nosniff"}
        return FileResponse(path, media_type=explorer.kind_of(path), headers=headers)

    def answer(path: str | None, question: str, choices: str, latents: str) -> str:
        try:
            return _frame(shelf.answer(ask(*_checked(path, question, choices), latents)))
        except InputError as error:
            told = str(error).replace(str(path), os.path.basename(str(path)))
            message = html.escape(" ".join(told.split()))
            raise gradio.Error(message, print_exception=False) from error

    with gradio.Blocks(title=title, analytics_enabled=False) as form:
        gradio.Markdown(f"# {html.escape(title)}")
        with gradio.Tab("Ask about a clip"):
            path = gradio.File(label="Clip", file_types=[*explorer.KINDS], type="filepath")
            question = gradio.Textbox(label="Question", max_length=explorer.LONGEST)
            choices = gradio.Textbox(label="Options, one a line (or none)", lines=4)
            latents = gradio.Radio(LATENTS, value=chosen, label="Latent blocks")
            button = gradio.Button("Ask", variant="primary")
            shown = gradio.HTML()
            button.click(answer, [path, question, choices, latents], shown, api_name="ask")
        if run is not None:
            with gradio.Tab("Run"):
                gradio.HTML(_frame(run))
    form.queue(max_size=_WAITING, default_concurrency_limit=1)
    # Fonts of the machine; the default theme's come from the network.
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    return gradio.mount_gradio_app(
        app, form, path="/", server_name=HOST, max_file_size=_UPLOAD, show_error=True,
        ssr_mode=False, footer_links=[], theme=theme,
    )  # fmt: skip


def _checked(path: str | None, question: str, choices: str) -> tuple[Path, str, list[str]]:
    """What a question needs. Raises InputError."""
    if path is None:
        raise InputError("choose a clip first: a video or a recording")
    explorer.kind_of(Path(path))  # before the minutes that an answer may take
    if not question.strip():
        raise InputError("write a question first")
    options = [line.strip() for line in choices.splitlines() if line.strip()]
    if len(options) > len(LETTERS):
        raise InputError(f"{len(options)} options; there are letters for {len(LETTERS)}")
    return Path(path), question.strip(), options


def _frame(address: str) -> str:
    return (
        f'<iframe src="{address}" title="a look inside" sandbox="allow-scripts" '
        'style="width: 100%; height: 60rem; border: 0"></iframe>'
    )


def _gradio(uploads: str) -> Any:
    """Gradio, which tells nobody that it runs, and keeps files in a folder that goes with us."""
    os.environ |= {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_RUN_HISTORY": "False",
        "GRADIO_TEMP_DIR": uploads,
    }
    try:
        import gradio
    except ImportError as error:
        raise InputError("the app needs gradio: pip install 'latentomni_jax[app]'") from error
    return gradio
