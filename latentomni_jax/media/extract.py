r"""The answer inside a model's text, and the rule that found it.

Of a multiple-choice reply the first of these counts that finds anything:

    rule             what is read                                     for example
    boxed            the last closed box: a letter of any case,       \boxed{\text{(b)}}
                     a statement, or the text of one option           \boxed{a cat}
    stated           a statement of the final answer                  Answer: (c), the correct
                                                                      option is D, 答案是B
    leading letter   a reply that is a letter, or begins with one     B, (b), B. a cat, B because
    lone letter      the one letter that stands by itself             It would be option B, I think.
    named option     the one option whose text is there               It must be a cat.
    none             nothing, or more than one answer

What stands last is final: a statement that ends the reply (or is followed by its option's text
alone) counts whatever is before it, even a box. Without one, statements that do not agree are no
answer, and neither is a statement, box or beginning that names two letters. Letters beyond the
options are none. The article "A" and the pronoun "I" are words, not letters, and an option that is
denied ("not B", "C is wrong") is not chosen. A letter counts more than the text beside it. What
stands before `</think>` is not read; a box that is cut off is no box.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

# Every repetition below is bounded or possessive, so that no text takes more than linear time.
_LATIN = "A-Za-z0-9À-ɏ"
_OPEN = r"[\"'“‘(\[{<「『【\s]{0,6}+"
_ENDS = rf"(?![{_LATIN}+#&]|['’\-][{_LATIN}])"  # the letter's word: not "Ann", "A's", "C-section"
_THOUGHT = re.compile("</think>", re.IGNORECASE)
_WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mathit)\s{0,4}+\{([^{}]*+)\}")
_BRACES = re.compile(r"\\boxed\s{0,4}+\{|[{}]")
# What says that the answer follows: "the correct answer to this question is most likely option".
_NOUN = r"(?:answers?|\bans|\b(?:correct|right|best|final|likely)\s{1,4}(?:option|choice|letter))"
_SAYS = (
    rf"{_NOUN}(?:\s{{1,4}}(?:to|for)\s[^\n.:]{{1,60}}?)?\s{{0,4}}(?:option|choice|letter)?\s{{0,4}}"
    r"(?:[:=]|-+>|→|\b(?:is|was)\b|\b(?:should|would|must|will) be\b)"
    r"(?:\s{0,4}(?::|(?:option|choice|letter|therefore|thus|clearly|probably|likely|most|the)\b))"
    r"{0,4}"
)
_CHOOSES = (
    r"\b(?:I|we)(?: would| will|['’]d|['’]ll)? (?:choose|chose|pick|select|go with)"
    r"(?: (?:option|choice|answer|letter))?"
)
_CHINESE = (
    r"(?<![不非])(?:答案|选择|选项|选)(?:应该|应当|应|就)?(?:是|为|选)?\s{0,4}:?\s{0,4}(?:选项|选)?"
)
_STATED = re.compile(rf"(?:{_SAYS}|{_CHOOSES}|{_CHINESE}){_OPEN}([A-Za-z]){_ENDS}", re.IGNORECASE)
_MORE = re.compile(
    r"(?:[\"'”’)\]}.]{0,3}\s{0,3}(?:[,/&+;、]|\bor\b|\band\b|和|或|与)\s{0,3}(?:or\b|and\b)?|[ \t])"
    rf"{_OPEN}(?:([A-Z])|(?<=[(\[])([a-z])(?=[)\]])){_ENDS}"
)
_LEADING = re.compile(rf"[\W_]*+([A-Za-z]){_ENDS}")
_LINE = re.compile(r"^[^\w\n]{0,8}+([A-Z])[.):]", re.MULTILINE)
_ALONE = re.compile(
    rf"(?<![{_LATIN}.\-+#&])(?<![A-Za-z]['’])([A-Z])(?![{_LATIN}+#&]|['’.\-][{_LATIN}])"
    r"|[(\[]([a-z])[)\]]"
)
# Words that follow a letter, and never an article.
_CONNECTIVES = {
    *("and", "as", "because", "but", "due", "for", "from", "given"),
    *("is", "or", "since", "so", "was", "which", "with"),
}
_WORD = re.compile(r"[ \t]{1,8}([A-Za-z0-9]+)")
_DENIED_BEFORE = re.compile(
    r"(?:\b(?:not|nor|neither|except|than|instead of|rule out|exclude|eliminate)|n['’]t)"
    r"\s{1,3}(?:(?:be|the|option|choice|answer|in|on|at)\s{1,3}){0,3}[\"'“‘(\[]{0,2}\Z"
    r"|[不非](?:选择|选项|选|是)?\s{0,3}\Z",
    re.IGNORECASE,
)
_DENIED_AFTER = re.compile(
    r"[\"'”’)\]]{0,3}[ \t]{0,3}(?:(?:is|was|are|were|seems|can be) ?"
    r"(?:not\b|n['’]t\b|incorrect|wrong|false|ruled out|excluded|eliminated)|can(?:no|['’])t\b"
    r"|(?:选项|是){0,2}(?:错|不对|不正确|不符))",
    re.IGNORECASE,
)


class Found(NamedTuple):
    """An answer, None where there is none, and the name of the rule that found it."""

    answer: str | None
    rule: str


NOTHING = Found(None, "none")


def extract_answer(text: str, choices: Sequence[str] = ()) -> str | None:
    """The answer that `find_answer` finds, None where it finds none."""
    return find_answer(text, choices).answer


def find_answer(text: str, choices: Sequence[str] = ()) -> Found:
    r"""The letter of the option that a text chooses, and the rule by which it does (see above).

    An open question, without choices, is answered by the last closed `\boxed{...}` (rule "boxed"),
    else by the whole text (rule "text").

    Returns:
      `NOTHING` where a multiple-choice answer cannot be parsed (never a guess).
    """
    thoughts = [match.end() for match in _THOUGHT.finditer(text)]
    text = text[thoughts[-1] :] if thoughts else text
    box, cut = _boxes(text)
    if not choices:
        return Found(
            (text if box is None else text[box]).strip(), "text" if box is None else "boxed"
        )
    after = _plain(text if box is None else text[box.stop :])
    claims = list(_claims(after, choices))
    if claims and claims[-1].is_last:
        return _found(claims[-1].letter, "stated")
    if box is not None:
        return _found(_boxed(_plain(text[box]), choices), "boxed")
    return _unboxed(_plain(text[:cut]), choices)


def _unboxed(text: str, choices: Sequence[str]) -> Found:
    """The rest of the cascade, for a text without a box."""
    if claims := list(_claims(text, choices)):
        letters = {claim.letter for claim in (claims[-1:] if claims[-1].is_last else claims)}
        return _found(letters.pop() if len(letters) == 1 else None, "stated")
    for rule, find in (
        ("leading letter", _leading),
        ("lone letter", _lone),
        ("named option", _named),
    ):
        if (letter := find(text, choices)) is not None:
            return Found(letter, rule)
    return NOTHING


def _found(letter: str | None, rule: str) -> Found:
    return NOTHING if letter is None else Found(letter, rule)


# ---------------------------------------------------------------------------- boxes


def _boxes(text: str) -> tuple[slice | None, int | None]:
    """What is in the closed box that begins last, and where the last unclosed one begins."""
    opened: list[re.Match] = []
    inside = None
    for token in _BRACES.finditer(text):
        if token[0] != "}":
            opened.append(token)
        elif opened:
            begin = opened.pop()
            if begin[0] != "{" and (inside is None or begin.end() > inside.start):
                inside = slice(begin.end(), token.start())
    unclosed = [token.start() for token in opened if token[0] != "{"]
    return inside, unclosed[-1] if unclosed else None


def _boxed(text: str, choices: Sequence[str]) -> str | None:
    letter = text.strip(" \t\r\n.,:;()[]{}\"'")
    if len(letter) == 1 and letter.isascii() and letter.isalpha():
        return _letter(letter, choices)
    same = [i for i, choice in enumerate(choices) if _option(choice) == _option(text) != ""]
    if len(same) == 1:
        return chr(ord("A") + same[0])
    return _unboxed(text, choices).answer


# ---------------------------------------------------------------------------- statements


class _Claim(NamedTuple):
    """A statement of the answer: its letter, None where that is no option or not the only one, and
    whether the reply ends with it."""

    letter: str | None
    is_last: bool


def _claims(text: str, choices: Sequence[str]) -> Iterator[_Claim]:
    found = [match for match in _STATED.finditer(text) if not _is_word(match, text, choices)]
    for match in found:
        if _DENIED_AFTER.match(text, match.end()):
            continue
        letter, end = _letter(match[1], choices), match.end()
        while (more := _MORE.match(text, end)) and not _is_word(more, text, choices):
            letter, end = (letter if _drawn(more) == _drawn(match) else None), more.end()
        rest = _words(text[end:]) if match is found[-1] else None
        yield _Claim(letter, rest in ("", _words(_text(letter, choices))))


def _letter(letter: str, choices: Sequence[str]) -> str | None:
    letter = letter.upper()
    return letter if ord(letter) - ord("A") < len(choices) else None


def _text(letter: str | None, choices: Sequence[str]) -> str:
    return "" if letter is None else choices[ord(letter) - ord("A")]


def _drawn(match: re.Match) -> str:
    """The letter that a pattern found, as a capital."""
    return match[match.lastindex or 0].upper()


def _is_word(match: re.Match, text: str, choices: Sequence[str]) -> bool:
    """Whether a matched letter is the article "A" or the pronoun "I", by the word behind it."""
    if _drawn(match) not in ("A", "I"):
        return False
    behind = _WORD.match(text, match.end(match.lastindex or 0))
    if not behind or behind[1].lower() in _CONNECTIVES or re.fullmatch("[A-Z]", behind[1]):
        return False
    letter, start = _letter(_drawn(match), choices), behind.start(1)
    own = _option(_text(letter, choices))
    return not own or text[start : start + len(own)].lower() != own


# ---------------------------------------------------------------------------- letters and texts


def _leading(text: str, choices: Sequence[str]) -> str | None:
    match = _LEADING.match(text)
    if not match or _is_word(match, text, choices) or _DENIED_AFTER.match(text, match.end()):
        return None
    if len(set(_LINE.findall(text))) > 1 or _MORE.match(text, match.end()):
        return None  # the options again, or several of them
    behind = text[match.end() : match.end() + 1]
    if not behind or behind in "\n.):]}" or (behind in ",;!?\"'" and match[1].isupper()):
        return _letter(match[1], choices)
    word = _WORD.match(text, match.end())
    if match[1].isupper() and word and word[1].lower() in _CONNECTIVES:
        return _letter(match[1], choices)
    return None


def _lone(text: str, choices: Sequence[str]) -> str | None:
    text, _ = _without_options(text, choices)
    lists: list[list[re.Match]] = []  # of letters that stand together: "A and B are wrong"
    for match in _ALONE.finditer(text):
        if _is_word(match, text, choices):
            continue
        more = _MORE.match(text, lists[-1][-1].end()) if lists else None
        if more and more.end(more.lastindex or 0) == match.end(match.lastindex or 0):
            lists[-1].append(match)
        else:
            lists.append([match])
    letters = {
        _letter(_drawn(match), choices)
        for one in lists
        if not _is_denied(text, one[0].start(), one[-1].end())
        for match in one
    } - {None}
    return letters.pop() if len(letters) == 1 else None


def _named(text: str, choices: Sequence[str]) -> str | None:
    named = _without_options(text, choices)[1]
    return chr(ord("A") + named.pop()) if len(named) == 1 else None


def _without_options(text: str, choices: Sequence[str]) -> tuple[str, set[int]]:
    """The text with what it says of options left blank, and the options that it names, by place.

    The longest are looked for first: "dark red" does not name "red".
    """
    places: dict[str, set[int]] = {}
    for place, choice in enumerate(choices):
        places.setdefault(_option(choice), set()).add(place)
    text, named = " ".join(text.split()), set()
    for option in sorted(places, key=len, reverse=True):
        if not option:
            continue
        sign = "(?<!-)" if option[0].isdigit() else ""  # "5" is not in "-5", "1.5" or "5,000"
        pattern = re.compile(
            rf"(?<![{_LATIN}])(?<!\d[.,]){sign}{re.escape(option)}(?![{_LATIN}]|[.,]\d)",
            re.IGNORECASE,
        )
        spans = [match.span() for match in pattern.finditer(text)]
        if any(not _is_denied(text, *span) for span in spans):
            named |= places[option]
        if len(option) > 1:  # an option that is a letter could be one
            text = pattern.sub(lambda match: "\0" * len(match[0]), text)
    return text, named


def _is_denied(text: str, start: int, end: int) -> bool:
    before = text[max(0, start - 48) : start]
    return bool(_DENIED_BEFORE.search(before) or _DENIED_AFTER.match(text, end))


def _plain(text: str) -> str:
    """Without markup: full-width forms as ASCII, no emphasis, LaTeX text as text."""
    text = unicodedata.normalize("NFKC", text)
    for _ in range(3):  # one in the other
        text = _WRAPPED.sub(r"\1", text)
    return text.translate({ord(mark): None for mark in "*`$"})


@functools.lru_cache(maxsize=64)
def _option(choice: str) -> str:
    """An option's text as it is looked for."""
    return " ".join(_plain(choice).lower().split()).strip(" .,:;!?。")


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", _plain(text).lower()))
