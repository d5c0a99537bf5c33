"""Questions are asked, shuffled and answered as each benchmark's authors have it."""

import collections
import dataclasses
import time

import pytest

from latentomni_jax.evaluate import benchmarks
from latentomni_jax.evaluate.benchmarks.base import shuffled
from latentomni_jax.media.extract import NOTHING, find_answer
from latentomni_jax.media.processor import LETTERS, with_choices
from tests.evaluate import annotations
from tests.evaluate.golden_answers import CHOICES, RULES, verdicts
from tests.evaluate.test_benchmarks import NAMES, SAMPLES, read


def sample(name, tmp_path):
    return read(name, annotations.write(tmp_path / "a.json", SAMPLES[name])).questions[0]


KEY_SENTENCES = {
    "daily_omni": "Your answer should be a capital letter representing your choice: A, B, C, or D. "
    "Don't generate any other text.",
    "lvomnibench": "Select the best answer from the options above. Directly provide the letter "
    "representing your choice (A/B/C/D) and nothing else.",
    "omnivideobench": "You are given a video. Based on the content of the video, answer the "
    "following question:",
    "video_mme": "Select the best answer to the following multiple-choice question based on the "
    "video. Respond with only the letter (A, B, C, or D) of the correct option.",
    "worldsense": "Carefully watch this video and pay attention to every detail. Based on your "
    "observations, select the best option that accurately addresses the question.",
}


@pytest.mark.parametrize("name", NAMES)
def test_prompts(name, tmp_path):
    question, styles = sample(name, tmp_path), benchmarks.get(name).styles
    asked = styles["own"].ask(question)
    assert KEY_SENTENCES[name] in asked and question.question in asked
    options = question.metadata["options"]
    assert (repr(options) if name == "daily_omni" else "\n".join(options)) in asked
    assert "boxed" not in asked
    assert styles["boxed"].ask(question) == with_choices(question.question, question.choices)
    assert styles["boxed"].extract is find_answer
    moved = shuffled(question, 1)
    places = [styles["own"].ask(moved).index(text) for text in moved.metadata["options"]]
    assert places == sorted(places)


def test_options_in_another_order(tmp_path):
    question = sample("worldsense", tmp_path)
    right = question.choices[LETTERS.index(question.answer)]
    letters = collections.Counter()
    for number in range(400):
        named = dataclasses.replace(question, id=f"q{number}")
        moved = shuffled(named, 3)
        assert moved == shuffled(named, 3)
        assert sorted(moved.choices) == sorted(question.choices)
        assert moved.choices[LETTERS.index(moved.answer)] == right
        assert moved.metadata["options"] == [
            f"{x}. {text}" for x, text in zip("ABCD", moved.choices, strict=True)
        ]
        assert moved.metadata["duration"] == "<1min"
        letters[moved.answer] += 1
    assert min(letters[x] for x in "ABCD") > 70  # of 100; a fair draw lies below once in 10,000
    orders = {seed: shuffled(question, seed).choices for seed in range(50)}
    assert len(set(orders.values())) > 15  # of 24


# ---------------------------------------------------------------------------- answers


@pytest.mark.parametrize("name", RULES[1:])
def test_golden_outputs(name):
    golden, extract = verdicts(name), benchmarks.get(name).styles["own"].extract
    assert len(golden) >= 60
    found = {text: extract(text, CHOICES) for text, _ in golden}
    wrong = {text: found[text] for text, letter in golden if found[text].answer != letter}
    assert not wrong
    assert all((one == NOTHING) == (one.answer is None) for one in found.values())


@pytest.mark.parametrize("name", RULES[1:])
def test_long_outputs_are_fast(name):
    extract = benchmarks.get(name).styles["own"].extract
    started = time.process_time()
    for piece in ("x", " ", "(", "\\boxed{", "answer is ", "assistant", "ANSWER", "z. ", "选"):
        extract(piece * (100_000 // len(piece)), CHOICES)
    assert time.process_time() - started < 10  # quadratic would be minutes
