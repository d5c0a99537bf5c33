"""A chat becomes one text, media as their placeholder tokens.

Chat templates come with checkpoints and are run as what they are, programs of strangers: sandboxed,
and with a limit on their steps.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import jinja2.sandbox

from latentomni_jax.layout import InputError

_TEMPLATE_STEPS = 200_000  # executed lines; a chat of 1,000 messages takes a tenth of it

# What Qwen2.5-Omni's own template makes of our message shapes, for tokenizers that bring none.
CHATML = """\
{% for message in messages %}
{% if loop.first and message.role != "system" %}
<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}
<|im_start|>{{ message.role }}
{% if message.content is string %}
{{ message.content }}
{%- else %}
{% for part in message.content %}
{% if part.type == "text" %}
{{ part.text }}
{%- elif part.type == "audio" %}
<|audio_bos|><|AUDIO|><|audio_eos|>
{%- else %}
<|vision_bos|><|{{ part.type | upper }}|><|vision_eos|>
{%- endif %}
{% endfor %}
{% endif %}
<|im_end|>
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
"""


class Template(NamedTuple):
    """A chat template and the file it is from, for messages about it."""

    text: str
    source: str


BUILT_IN_TEMPLATE = Template(CHATML, "the built-in chat template")


def load_template(directory: str | os.PathLike) -> Template:
    """The chat template of a checkpoint directory; the built-in one where there is none.

    Raises:
      InputError: where a file that should hold one is not readable as such.
    """
    directory = Path(directory)
    path = directory / "chat_template.jinja"
    if path.is_file():
        return Template(path.read_text(encoding="utf-8", errors="replace"), str(path))
    for path in (directory / "chat_template.json", directory / "tokenizer_config.json"):
        if not path.is_file():
            continue
        try:
            found = json.loads(path.read_text(encoding="utf-8")).get("chat_template")
        except (ValueError, AttributeError) as error:
            raise InputError(f"{path}: is not a JSON object: {error}") from error
        if isinstance(found, str):
            return Template(found, str(path))
        if found is not None:
            raise InputError(f"{path}: chat_template should be a string: {found!r:.80}")
    return BUILT_IN_TEMPLATE


def chat_prompt(
    messages: Sequence[dict[str, Any]], template: Template, add_generation_prompt: bool = True
) -> str:
    """The text that a chat becomes before it is tokenized, media as their placeholder tokens.

    Args:
      messages: `{"role": "system" | "user" | "assistant", "content": ...}`, where content is a
        string or a list of `{"type": "text", "text": ...}` and `{"type": "video"}`, `"audio"` or
        `"image"`. Text of users should have gone through `strip_special`.
      template: usually `tokenizer.template`.
      add_generation_prompt: end with the opening of an assistant message.

    Raises:
      InputError: where messages have another shape, or the template fails or does not end.
    """
    _check_messages(messages)
    steps = 0

    def count(frame, event, arg):
        nonlocal steps
        steps += event == "line"
        if steps > _TEMPLATE_STEPS:
            raise TimeoutError(f"it runs for more than {_TEMPLATE_STEPS} steps")
        return count

    previous = sys.gettrace()
    try:
        compiled = _compiled(template.text)
        sys.settrace(count)  # of this thread only; the one way to stop a loop without output
        return compiled.render(messages=list(messages), add_generation_prompt=add_generation_prompt)
    except Exception as error:  # a template can raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{template.source}: the chat template fails: {reason}") from error
    finally:
        sys.settrace(previous)


def _check_messages(messages: Sequence[dict[str, Any]]):
    for number, message in enumerate(messages):
        where = f"message {number}"
        if not isinstance(message, dict) or message.get("role") not in (
            "system",
            "user",
            "assistant",
        ):
            raise InputError(f"{where}: expected a role system, user or assistant: {message!r:.80}")
        content = message.get("content")
        if isinstance(content, str):
            continue
        if not isinstance(content, list):
            raise InputError(f"{where}: content should be a string or a list: {content!r:.80}")
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind not in ("text", "video", "audio", "image") or (
                kind == "text" and not isinstance(part.get("text"), str)
            ):
                raise InputError(f"{where}: expected text, video, audio or image: {part!r:.80}")


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja without a way to Python, to files, or to huge results of `*` and `**`."""

    intercepted_binops = frozenset(("*", "**"))

    def call_binop(self, context, operator, left, right):
        raise jinja2.exceptions.SecurityError(f"the operator {operator} is not allowed")


@functools.lru_cache(maxsize=8)
def _compiled(text: str) -> jinja2.Template:
    # The options under which transformers renders these files; loops may break and continue.
    environment = _Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )

    def raise_exception(message: str):
        raise jinja2.exceptions.TemplateError(message)

    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(text)
