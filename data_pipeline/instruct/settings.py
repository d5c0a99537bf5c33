"""Every choice of a run of the pipeline; defaults are the paper's where it makes one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from latentomni_jax.layout import InputError

# Who is asked for what.
ROLES = ("question", "judge", "captioner", "editor", "reasoner", "auditor")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Role:
    """A model and how it is asked.

    Attributes:
      model: its name on the server. url: of the server; "" is the run's own. key: the environment
        variable that holds the server's API key.
      max_tokens: of a reply. input_price, output_price: per million tokens, in any one currency.
      structured: ask the server to keep to the reply's JSON schema (checked in any case).
    """

    model: str = ""
    url: str = ""
    key: str = "OPENAI_API_KEY"
    temperature: float = 0.6
    top_p: float = 0.95
    max_tokens: int = 2048
    input_price: float = 0.0
    output_price: float = 0.0
    structured: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """All of them.

    Attributes:
      url: of the model server ("http://host:port/v1"). roles: by name, see ROLES.
      kinds: questions made of each caption, open-ended and/or multiple-choice.
      threshold: of the three scores' sum. ratio: of the counts of two adjacent categories at most;
        0 leaves balancing out. least: samples of a category below which it is left out.
      leak_filter: a judge drops what one modality alone tells.
      captioner: "model" sees and hears segments; "text" cuts timed captions.
      segment_seconds: length of a segment where no shots are given.
      concurrency: calls under way at a time, per process. per_minute: calls begun a minute at most,
        per process; 0 for no limit. timeout: seconds of one try. tries: of one call.
      backoff: seconds before the second try, doubled before each further one. patience: seconds
        for which a busy server (429) or one that cannot be reached is waited for, beyond tries.
      token_budget, cost_budget: of the prompts and replies of a start together; 0 for none. Stored
        replies are free.
    """

    url: str = ""
    roles: dict[str, Role] = dataclasses.field(default_factory=lambda: {r: Role() for r in ROLES})
    kinds: tuple[Literal["open", "choice"], ...] = ("choice",)
    threshold: int = 13
    ratio: float = 3.0
    least: int = 0
    leak_filter: bool = False
    captioner: Literal["model", "text"] = "model"
    segment_seconds: float = 5.0
    frames_per_second: float = 2.0  # that a captioner gets of a segment
    concurrency: int = 64
    per_minute: float = 0.0
    timeout: float = 120.0
    tries: int = 6
    backoff: float = 1.0
    patience: float = 600.0
    token_budget: int = 0
    cost_budget: float = 0.0
    seed: int = 0

    def __post_init__(self):
        if missing := [name for name in ROLES if name not in self.roles]:
            raise InputError(f"no model for {', '.join(missing)}; roles are {', '.join(ROLES)}")
        if unknown := sorted(set(self.roles) - set(ROLES)):
            raise InputError(f"no role {', '.join(unknown)}; roles are {', '.join(ROLES)}")
        if not self.kinds or set(self.kinds) - {"open", "choice"}:
            raise InputError(f"kinds should be open, choice or both, got {self.kinds}")
        if self.captioner not in ("model", "text"):
            raise InputError(f"captioner should be model or text, got {self.captioner!r}")
        for name in ("segment_seconds", "frames_per_second", "concurrency", "timeout", "tries"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} should be more than 0, got {getattr(self, name)}")
        for url in {self.url, *(role.url for role in self.roles.values())}:
            if "@" in url:
                raise InputError("an address holds no password: keys are read from the environment")
        prices = [role.input_price + role.output_price for role in self.roles.values()]
        if self.cost_budget and not all(prices):
            raise InputError("a cost budget needs input_price and output_price of every role")
        if self.ratio and self.ratio < 1:
            raise InputError(f"ratio should be 0 or at least 1, got {self.ratio}")


def from_config(config: Mapping[str, Any]) -> Settings:
    """Settings of a tree of plain values, as `configs/instruct.py` makes one.

    Raises:
      InputError: an unknown name, or a value that does not fit.
    """
    try:
        roles = {name: Role(**values) for name, values in config["roles"].items()}
        return Settings(**{**config, "kinds": tuple(config["kinds"]), "roles": roles})
    except (TypeError, KeyError, AttributeError) as error:
        raise InputError(f"settings of the pipeline: {error}") from error
