"""Answers are read out of text, and never guessed."""

import pytest

from latentomni_jax.media.extract import extract_answer

CHOICES = ("a dog", "a cat", "a car", "a bell")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"First the bell, then ... \boxed{B}", "B"),
        (r"\boxed{A}, no: \boxed{C}", "C"),
        (r"\boxed{(D)}", "D"),
        (r"\boxed{B. a cat}", "B"),
        (r"\boxed{\text{C}}", "C"),
        (r"\boxed{a bell}", "D"),
        ("B", "B"),
        ("C) a car", "C"),
        ("(A)", "A"),
        ("It must be a cat.", "B"),
        ("A man walks by", None),  # the article is no answer
        ("a dog or a cat", None),
        (r"\boxed{E}", None),  # there is no option E
        (r"\boxed{B", None),  # cut off
        ("", None),
    ],
)
def test_multiple_choice(text, answer):
    assert extract_answer(text, CHOICES) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"So \boxed{the red \textbf{ball}} it is", r"the red \textbf{ball}"),
        ("  just text ", "just text"),
    ],
)
def test_open_questions(text, answer):
    assert extract_answer(text) == answer
