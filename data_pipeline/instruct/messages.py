r"""Trajectories as rows of messages, the layout that SFT frameworks read, and back.

    {"id": "a1",
     "messages": [{"role": "user", "content": "<video>Which shape?\nA. disc\nB. square\nGive ..."},
                  {"role": "assistant",
                   "content": "I listen.<Unified_Latent></Unified_Latent>It is B.\n\\boxed{B}"}],
     "images": [], "videos": ["clips/a1.mp4"], "audios": [], "segments": [[1.0, 2.5]],
     "choices": ["disc", "square"], "answer": "\\boxed{B}", "metadata": {...}}

`messages`, `images`, `videos` and `audios` are the layout's; the other keys are what it has no
place for, and loaders pass over them. `segments` are the seconds of the latent pairs, in order.
The sound of a video is in its file. A placeholder that stands in a text gets a space behind its
`<` (`< video>`), so that loaders do not count it, and loses it on the way back.

Rows of others are read too: without the other keys, with an image, video or audio file that is
named by a placeholder or, as OpenAI's API has it, by a part of the content.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from data_pipeline.shards import writing
from data_pipeline.trajectories import (
    KINDS,
    PAIR,
    DataProblem,
    Kind,
    Reason,
    Trajectory,
    parse_object,
    read_jsonl,
)
from latentomni_jax.layout import InputError
from latentomni_jax.media.extract import extract_answer
from latentomni_jax.media.processor import LETTERS, with_choices

_KIND = f"(?:{'|'.join(KINDS)})"
_PLACEHOLDER = re.compile(f"<({_KIND})>")
_WHOLE = re.compile(f"<( *{_KIND}>)")
_BROKEN = re.compile(f"< ( *{_KIND}>)")
_BOX = "\\boxed{"
_File = tuple[Kind, str]  # and its path
_Fail = Callable[[str], NoReturn]


def to_messages(trajectory: Trajectory) -> dict[str, Any]:
    """The row of a trajectory, of which `from_messages` makes the same trajectory again."""
    asked = _break(with_choices(trajectory.question, trajectory.choices))
    if trajectory.kind is not None:
        # One line break behind a placeholder, and one before an answer, are the layout's.
        gap = "\n" if asked.startswith("\n") else ""
        asked = f"<{trajectory.kind}>{gap}{asked}"
    gap = "\n" if trajectory.reasoning and not trajectory.reasoning.endswith(PAIR) else ""
    turns = [("user", asked), ("assistant", _break(trajectory.reasoning + gap + trajectory.answer))]
    if trajectory.system is not None:
        turns.insert(0, ("system", _break(trajectory.system)))
    files = {f"{kind}s": [trajectory.path] if kind == trajectory.kind else [] for kind in KINDS}
    return {
        "id": trajectory.id,
        "messages": [{"role": role, "content": content} for role, content in turns],
        **files,
        "segments": [list(segment) for segment in trajectory.segments],
        "choices": list(trajectory.choices),
        "answer": trajectory.answer,
        "metadata": trajectory.metadata,
    }


def from_messages(row: Any, where: str = "row") -> Trajectory:
    r"""A row as a checked trajectory.

    Without `answer`, that is the `\boxed{}` that the assistant ends with; else what follows the
    last latent pair. Without `id`, that is the end of `where`. A video beside an audio file of
    the same name is the video with its sound, which is read from the video.

    Args:
      where: "file:line", for messages.

    Raises:
      DataProblem: the row is malformed, or says what no trajectory can: several turns, several
        files, a file amid the text or in the assistant's turn, data or an address for a path.
    """
    given = row.get("id") if isinstance(row, dict) else None
    id = str(given) if type(given) is int else given

    def fail(message: str) -> NoReturn:
        named = id if isinstance(id, str) else None
        raise DataProblem(Reason.MALFORMED, where, named, message)

    if not isinstance(row, dict):
        fail(f"expected a JSON object with messages, got {row!r:.60}")
    files = {kind: _files(row, f"{kind}s", fail) for kind in KINDS}
    turns = {role: _parts(content, files, fail) for role, content in _turns(row, fail).items()}
    if left := [f"{kind}s" for kind in KINDS if files[kind]]:
        fail(f"{' and '.join(left)} name more files than there are placeholders")
    question, file = _asked(turns.pop("user"), fail)
    texts = {role: _text(role, parts, fail) for role, parts in turns.items()}
    reasoning, answer = _parted(texts.pop("assistant"), row.get("answer"), fail)
    data = {
        "id": os.path.basename(where) if id is None else id,
        "question": _without_choices(question, row.get("choices"), fail),
        "reasoning": reasoning,
        "answer": answer,
        **{name: row.get(name) for name in ("segments", "choices", "metadata")},
        **texts,
        **dict([file] if file else []),
    }
    return parse_object(data, where)


def export_messages(
    trajectories_path: str | os.PathLike, out_path: str | os.PathLike
) -> tuple[int, list[DataProblem]]:
    """Writes the trajectories of a file as rows of messages, JSON lines, in order.

    Returns:
      How many there are, and the problems of lines that are left out.

    Raises:
      InputError: there is no such file.
    """
    trajectories, problems = read_jsonl(trajectories_path)
    with writing(Path(out_path)) as out:
        for trajectory in trajectories:
            out.write(json.dumps(to_messages(trajectory)) + "\n")
    return len(trajectories), problems


def import_messages(
    path: str | os.PathLike, out_path: str | os.PathLike
) -> tuple[int, list[DataProblem]]:
    """Writes the rows of a file, JSON lines or one JSON list, as trajectories, in order.

    Returns:
      How many were written, and the problems of rows that are left out; of rows with the same id
      all but the first are.

    Raises:
      InputError: there is no such file, or its list is no JSON.
    """
    seen: dict[str, str] = {}
    problems: list[DataProblem] = []
    with writing(Path(out_path)) as out:
        for where, read in _rows(Path(path)):
            try:
                made = from_messages(read(), where)
                if made.id in seen:
                    first = f"first used at {seen[made.id]}"
                    raise DataProblem(Reason.DUPLICATE, where, made.id, first)
            except DataProblem as problem:
                problems.append(problem)
                continue
            seen[made.id] = where
            out.write(json.dumps(made.to_json()) + "\n")
    return len(seen), problems


def _rows(path: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Of each row, where it is and what gives it or raises DataProblem."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected rows of messages")
    with path.open("rb") as lines:
        first = next((line for line in lines if line.strip()), b"")
        lines.seek(0)
        if first.lstrip().startswith(b"["):
            try:
                rows = json.load(lines)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}: is not a JSON list: {_line(error)}") from None
            yield from ((f"{path}:{i}", lambda row=row: row) for i, row in enumerate(rows, 1))
            return
        for number, line in enumerate(lines, start=1):
            if line.strip():
                where = f"{path}:{number}"
                yield where, lambda line=line, where=where: _loads(line, where)


def _loads(line: bytes, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        message = f"is not a JSON object: {_line(error)}"
        raise DataProblem(Reason.MALFORMED, where, None, message) from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


# ------------------------------------------------------------------------------ what a row says


def _turns(row: dict[str, Any], fail: _Fail) -> dict[str, Any]:
    """Contents by role: of user, assistant and, where there is one, system."""
    messages = row.get("messages")
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        fail(f"messages should be a list of objects, got {messages!r:.60}")
    roles = [message.get("role") for message in messages]
    if roles not in (["user", "assistant"], ["system", "user", "assistant"]):
        told = ", ".join(map(repr, roles))
        fail(f"expected turns of user and assistant, before them system or none, got {told:.60}")
    return {message["role"]: message.get("content") for message in messages}


def _files(row: dict[str, Any], name: str, fail: _Fail) -> list[str]:
    given = row.get(name)
    listed = [] if given is None else given if isinstance(given, list) else [given]
    if not all(isinstance(path, str) for path in listed):
        fail(f"{name} should be a list of paths, got {given!r:.60}")
    return list(listed)


def _parts(content: Any, files: dict[Kind, list[str]], fail: _Fail) -> list[str | _File]:
    """Texts and files of a turn in order; takes the files of placeholders out of `files`."""
    found: list[str | _File] = []
    if isinstance(content, str):
        # A group in the pattern makes split() keep what it splits at: every second part.
        for number, part in enumerate(_PLACEHOLDER.split(content)):
            if number % 2 == 0:
                found.append(_BROKEN.sub(r"<\1", part))
            elif not files[part]:
                fail(f"<{part}> has no file in {part}s")
            else:
                found.append((part, files[part].pop(0)))
    elif isinstance(content, list):
        found = [_part(part, fail) for part in content]
    else:
        fail(f"content should be text or a list of parts, got {content!r:.60}")
    return [part for part in found if part]


def _part(part: Any, fail: _Fail) -> str | _File:
    """An object of a content list: {"type": "text", "text"}, {"type": "video", "video"} or
    {"type": "video_url", "video_url": {"url"}}, and so of images and sounds."""
    name = part.get("type") if isinstance(part, dict) else None
    value = part.get(name) if isinstance(name, str) else None
    kind = next((kind for kind in KINDS if name in (kind, f"{kind}_url")), None)
    if kind is not None and isinstance(value, dict):
        value = value.get("url")
    if not isinstance(value, str) or (kind is None and name != "text"):
        fail(f"expected a part with text or the path of a file, got {part!r:.60}")
    if kind is None:
        return value
    path = value.removeprefix("file://")
    if re.match(r"data:|\w+://", path):
        fail(f"{kind} should be the path of a file, got {path!r:.60}")
    return kind, path


def _asked(parts: list[str | _File], fail: _Fail) -> tuple[str, _File | None]:
    """Question and file of the user's turn."""
    files = [part for part in parts if not isinstance(part, str)]
    question = "".join(part for part in parts if isinstance(part, str))
    if not files:
        return question, None
    in_front = parts[: len(files)] == files
    if not in_front and parts[-len(files) :] != files:
        fail("a file amid the user's text; expected it before or behind")
    question = question.removeprefix("\n") if in_front else question.removesuffix("\n")
    paths = dict(files)
    stems = {os.path.splitext(path)[0] for path in paths.values()}
    if len(files) == 2 and set(paths) == {"video", "audio"} and len(stems) == 1:
        return question, ("video", paths["video"])
    if len(files) > 1:
        fail(f"at most one file, got {', '.join(repr(path) for _, path in files):.60}")
    return question, files[0]


def _text(role: str, parts: list[str | _File], fail: _Fail) -> str:
    if files := [part for part in parts if not isinstance(part, str)]:
        kind, path = files[0]
        fail(f"{kind} {path!r:.60} in the turn of {role}; expected its seconds in segments")
    return "".join(part for part in parts if isinstance(part, str))


def _parted(said: str, answer: Any, fail: _Fail) -> tuple[str, str]:
    """Reasoning and answer of the assistant's turn."""
    if answer is not None:
        if not isinstance(answer, str) or not said.endswith(answer):
            fail(f"the assistant should end with the answer, {answer!r:.60}")
        place = len(said) - len(answer)
    else:
        box = said[max(said.rfind(_BOX), 0) :].rstrip()
        whole = box.startswith(_BOX) and box.endswith("}")
        if whole and extract_answer(box) == box[len(_BOX) : -1].strip():
            place = said.rfind(_BOX)
        else:
            place = said.rfind(PAIR) + len(PAIR) if PAIR in said else 0
    reasoning = said[:place]
    if not reasoning.endswith(PAIR):
        reasoning = reasoning.removesuffix("\n")
    return reasoning, said[place:]


def _without_choices(question: str, choices: Any, fail: _Fail) -> str:
    """The question without the list of its choices, where the row names them."""
    is_list = isinstance(choices, list) and all(isinstance(choice, str) for choice in choices)
    if not is_list or len(choices) > len(LETTERS):
        return question  # without choices, or with such as `parse_object` complains of
    listed = with_choices("", choices)
    if not question.endswith(listed):
        fail(f"the question should end with its choices, {listed!r:.60}")
    return question.removesuffix(listed)


def _break(text: str) -> str:
    return _WHOLE.sub(r"< \1", text)
