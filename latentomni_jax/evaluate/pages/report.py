"""One page to look at: a clip, how the model reasoned about it, what it looked at, its scores.

A single HTML file with its pictures and the clip inside, so that it opens anywhere, without network
and without scripts. All text is escaped: questions and answers are data.
"""

from __future__ import annotations

import base64
import dataclasses
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from data_pipeline.shards import write_text
from data_pipeline.trajectories import Trajectory
from latentomni_jax.evaluate.answers import Score, prompt_of
from latentomni_jax.evaluate.attention import over_clip
from latentomni_jax.evaluate.pages import plots
from latentomni_jax.evaluate.replay import replay
from latentomni_jax.layout import InputError, Part
from latentomni_jax.media.extract import extract_answer
from latentomni_jax.media.video import read_clip
from latentomni_jax.model import Generation, LatentOmni

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #1a202c; background: #fff; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #e2e8f0; }
img { width: 100%; height: auto; } video { height: 14rem; image-rendering: pixelated; }
table { border-collapse: collapse; } td, th { padding: .3rem .8rem; text-align: right; }
td:first-child, th:first-child { text-align: left; } tr + tr td { border-top: 1px solid #e2e8f0; }
.said { background: #f7fafc; padding: 1rem; border-radius: .5rem; white-space: pre-wrap; }
.latent { background: #553c9a; color: #fff; border-radius: 1rem; padding: .1rem .7rem; }
.right { color: #276749; font-weight: 600; } .wrong { color: #c53030; font-weight: 600; }
.note { color: #4a5568; }
"""


@dataclasses.dataclass(frozen=True, eq=False)
class Shown:
    """A question that the page shows, with what the model generated.

    Attributes:
      path: of the clip. prompt: the parts that were asked.
    """

    question: Trajectory
    path: Path
    prompt: list[Part]
    generation: Generation

    @classmethod
    def ask(cls, model: LatentOmni, question: Trajectory, root: Path, **options) -> Shown:
        """Asks a model; options as in `LatentOmni.generate`. Raises InputError."""
        if question.kind != "video" or question.path is None:
            raise InputError(f"question {question.id} has no video to show")
        prompt = prompt_of(model, question, root)
        generation = model.generate([prompt], **options)[0]
        return cls(question, root / question.path, prompt, generation)


def page(title: str, sections: Sequence[tuple[str, str]]) -> str:
    """The document; sections are (heading, HTML)."""
    body = "".join(f"<h2>{html.escape(name)}</h2>\n{content}\n" for name, content in sections)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<link rel="icon" href="data:,"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body><h1>{html.escape(title)}</h1>\n{body}</body></html>\n"
    )


def write_page(path: Path, title: str, sections: Sequence[tuple[str, str]]) -> None:
    write_text(path, page(title, sections))


def picture(uri: str, text: str) -> str:
    """An image with its description."""
    return f'<p><img src="{uri}" alt="{html.escape(text)}"></p>'


def clip_section(shown: Shown, model: LatentOmni) -> str:
    """The clip to play, its frames and its sound."""
    data = base64.b64encode(shown.path.read_bytes()).decode()
    film = plots.film(read_clip(shown.path, model.media), shown.question.segments)
    return (
        f'<video controls src="data:video/mp4;base64,{data}"></video>'
        f"{picture(film, 'frames and spectrogram of the clip')}"
        '<p class="note">As the model is given it: frames above, sound below. Red: the moments '
        "that the reasoning of the data cites. The model is not told them.</p>"
    )


def answer_section(shown: Shown, model: LatentOmni) -> str:
    """Question, what the model wrote with its latent blocks in place, and whether it is right."""
    question = shown.question
    options = "".join(f"<li>{html.escape(choice)}</li>" for choice in question.choices)
    given = extract_answer(shown.generation.text, question.choices)
    expected = extract_answer(question.answer, question.choices)
    verdict = "right" if given == expected else "wrong"
    return (
        f"<p><b>{html.escape(question.question)}</b></p><ol type='A'>{options}</ol>"
        f'<p class="said">{said(shown.generation, model)}</p>'
        f'<p>Answer {html.escape(str(given))}: <span class="{verdict}">{verdict}</span>'
        f" (expected {html.escape(str(expected))}).</p>"
    )


def said(generation: Generation, model: LatentOmni) -> str:
    """The generated text as HTML, a chip for every latent block."""
    spec = model.latent
    chip = f'<span class="latent">{spec.num_visual} visual + {spec.num_audio} audio states</span>'
    return f" {chip} ".join(map(html.escape, pieces(generation, model)))


def pieces(generation: Generation, model: LatentOmni) -> list[str]:
    """The generated text before, between and after its latent blocks."""
    spec, found = model.latent, [[]]
    for token in map(int, generation.token_ids):
        if token == spec.trigger_id:
            found.append([])
        elif token not in (spec.pad_id, spec.stop_id):
            found[-1].append(token)
    return [model.tokenizer.decode(run) for run in found]


def attention_section(shown: Shown, model: LatentOmni) -> str:
    """For every latent block, where each of its states looks in the clip."""
    clip = read_clip(shown.path, model.media)
    row = replay(model, shown.prompt, shown.generation)
    blocks = over_clip(model, row, clip.duration)
    if not blocks:
        return "<p>The model opened no latent block here.</p>"
    out = []
    for i, (seen, heard) in enumerate(blocks):
        cited = shown.question.segments[i] if i < len(shown.question.segments) else None
        weights = seen.sum(axis=(2, 3)), heard
        uri = plots.attention_over_clip(clip, weights, model.latent.num_visual, cited)
        out.append(f"<h3>Block {i + 1}</h3>{picture(uri, f'attention of latent block {i + 1}')}")
    return "".join(out) + (
        '<p class="note">A row is a latent state (v visual, a audio); bright is where the position '
        "that made it looks, mean over layers and heads. Red: the moment that the data cites.</p>"
    )


def score_section(scores: Mapping[str, Mapping[str, Score]], chance: float) -> str:
    """Accuracy by type for everything the model was given, and the table behind it."""
    types = list(next(iter(scores.values())))
    head = "".join(f"<th>{html.escape(type)}</th>" for type in types)
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td>"
        + "".join(f"<td>{_counts(by_type.get(t))}</td>" for t in types)
        + f"<td>{by_type['all'].p_value:.1e}</td></tr>"
        for name, by_type in scores.items()
    )
    return (
        picture(plots.accuracies(scores, chance), "accuracy by type of question")
        + f"<table><tr><th>given</th>{head}<th>p(chance)</th></tr>{rows}</table>"
    )


def _counts(score: Score | None) -> str:
    return "-" if score is None else f"{score.right}/{score.asked}"


def summary_table(rows: Mapping[str, str]) -> str:
    """Names and values."""
    lines = (
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>"
        for name, value in rows.items()
    )
    return f"<table>{''.join(lines)}</table>"
