"""Prompts as template files, one for each job in `prompts/`, and the requests made of them.

A file has four parts: `role: NAME` (of `settings.ROLES`), `# system`, `# user`, and `# reply`, the
JSON schema of the reply. The last three are Jinja templates. Whatever comes from a caption or from
a model goes through the filter `quoted`, which keeps it inside its tags.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from pathlib import Path
from typing import Any

import jinja2
import jinja2.sandbox

from data_pipeline.instruct.settings import ROLES
from latentomni_jax.layout import InputError

FOLDER = Path(__file__).parent / "prompts"


@dataclasses.dataclass(frozen=True)
class Media:
    """Content of a message that is made of files when it is sent.

    Attributes:
      parts: makes the content parts. digest: of what they hold.
    """

    parts: Any
    digest: str


@dataclasses.dataclass(frozen=True)
class Request:
    """What a model is asked.

    Attributes:
      job: the prompt's name. role: who is asked. system, user: texts.
      schema: of the reply. media: pictures or sound that stand before the text.
    """

    job: str
    role: str
    system: str
    user: str
    schema: dict[str, Any]
    media: Media | None = None

    def messages(self) -> list[dict[str, Any]]:
        """As a chat completion takes them; reads the media."""
        content: Any = self.user
        if self.media is not None:
            content = [*self.media.parts(), {"type": "text", "text": self.user}]
        return [{"role": "system", "content": self.system}, {"role": "user", "content": content}]


def request(job: str, *, media: Media | None = None, **values: Any) -> Request:
    """A job's prompt, filled in."""
    role, parts = _prompt(job)
    system, user, told = (part.render(values).strip() for part in parts)
    schema = json.loads(told)
    user += f"\n\nReply with one JSON object and nothing else, of this JSON schema:\n{told}"
    return Request(job, role, system, user, schema, media)


def check() -> None:
    """Reads all prompts. Raises InputError where one is unusable, before anything is asked."""
    for path in sorted(FOLDER.glob("*.md")):
        _prompt(path.stem)


@functools.cache
def _prompt(job: str) -> tuple[str, tuple[jinja2.Template, ...]]:
    path = FOLDER / f"{job}.md"
    text = path.read_text(encoding="utf-8")
    found = re.fullmatch(
        r"role: (\w+)\n+# system\n(.*?)\n# user\n(.*?)\n# reply\n(.*)", text, re.DOTALL
    )
    if found is None or found[1] not in ROLES:
        raise InputError(
            f"{path}: a prompt has a first line 'role: ...' (one of {', '.join(ROLES)}) and the "
            "parts '# system', '# user' and '# reply'"
        )
    environment = jinja2.sandbox.SandboxedEnvironment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    environment.filters["quoted"] = _quoted
    environment.policies["json.dumps_function"] = lambda value, **_: json.dumps(value)
    try:
        return found[1], tuple(environment.from_string(part) for part in found.groups()[1:])
    except jinja2.TemplateSyntaxError as error:
        raise InputError(f"{path}: {error}") from error


def _quoted(text: str) -> str:
    """Text that can close no tag."""
    return str(text).replace("</", "< /")
