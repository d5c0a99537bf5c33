"""Asking models: one client for every OpenAI-compatible server, and a store of what they replied.

A reply is stored under the hash of everything that it depends on: model, messages, schema, sampling
and seed; not the server's address. So a run that was ended goes on where it was, another run is
free where it asks the same, and a changed prompt asks again only what it changes. What was not
usable is never stored.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import os
import random
import re
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import openai

from data_pipeline.instruct.items import Failed, Reason
from data_pipeline.instruct.parsing import content, one_line, parse, tidy
from data_pipeline.instruct.prompts import Request
from data_pipeline.instruct.settings import Role, Settings
from data_pipeline.instruct.store import Reply, Store
from latentomni_jax.layout import InputError

FORMAT = 1  # of what is stored
T = TypeVar("T")
COST = "cost, millionths"
_SHOWN = 4000  # characters of an unusable reply that a ledger keeps
_REMEMBERED = 1000  # things made once
_DEAD = 8  # calls in a row without any reply, after which the server is taken for dead
_BUSY = (openai.RateLimitError, openai.APIConnectionError)
_FATAL = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError)


class Waiting(Exception):
    """The run has stopped asking: this call has to wait for the next run."""


class Asker:
    """Asks models, many calls at a time; of one event loop.

    Attributes:
      usage: counts of calls, tries, replies from the store, tokens and cost.
      halted: why no further call is made; "" while there is no reason.
    """

    def __init__(self, settings: Settings, store: Store, keys: Mapping[str, str]):
        """`keys` has API keys under the names of environment variables, see `Role.key`."""
        self.settings, self.store = settings, store
        self.usage: Counter[str] = Counter()
        self.halted = ""
        self._keys = keys
        self._clients: dict[tuple[str, str], openai.AsyncOpenAI] = {}
        self._refused: Counter[str] = Counter()  # in a row, by role
        self._running = asyncio.Semaphore(settings.concurrency)
        self._made: dict[Hashable, asyncio.Future] = {}
        # Fewer than there are cores: calls are made by a thread too, which would wait for them.
        self._workers = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 2))
        self._next, self._dead = 0.0, 0

    async def __call__(
        self, request: Request, seed: int, check: Callable[[dict[str, Any]], None] | None = None
    ) -> Reply:
        """The reply to a request, from the store or from the model.

        Args:
          check: raises ValueError where data that keep to the schema are unusable all the same.

        Raises:
          Failed: no try gave a usable reply. Waiting: the run no longer asks.
        """
        role = self.settings.roles[request.role]
        key = request_key(request, role, seed)
        if (reply := self.store.get(key)) is not None:
            self.usage["stored"] += 1
            return reply
        async with self._running:
            reply = await self._ask(request, role, seed, check)
        self.store.put(key, reply)
        return reply

    async def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """`make()`, called in a thread, once for all who ask for the same key at about a time."""
        made = self._made.get(key)
        if made is None:
            loop = asyncio.get_running_loop()
            made = self._made[key] = loop.run_in_executor(self._workers, make)
            if len(self._made) > _REMEMBERED:
                del self._made[next(iter(self._made))]
        return await asyncio.shield(made)

    async def close(self) -> None:
        for client in self._clients.values():
            await client.close()
        self._workers.shutdown()
        self.store.close()

    async def _ask(self, request: Request, role: Role, seed: int, check: Any) -> Reply:
        began, tries, waits, unusable = time.monotonic(), 0, 0, 0
        last, raw, reason = "", "", Reason.SERVER
        try:
            messages = request.messages()
        except OSError as error:
            raise Failed(Reason.MEDIA, f"{request.job}: {error}") from error
        while tries < self.settings.tries:
            if tries + waits:
                await asyncio.sleep(self._pause(tries + waits, last))
            await self._turn()
            if self.halted:
                raise Waiting(self.halted)
            self.usage["calls"] += not tries + waits
            self.usage["tries"] += 1
            try:
                # Another reply is asked for where one was unusable, not where the server was.
                body = await self._post(request, role, messages, seed + unusable)
                raw, model, is_whole = content(body)
            except _FATAL as error:
                raise self._halt(role, error) from None
            except openai.BadRequestError as error:
                self._refused[request.role] += 1
                if self._refused[request.role] >= _DEAD:  # it is not these requests: a key, a model
                    raise self._halt(role, error) from None
                raise Failed(Reason.SERVER, f"{request.job}: {self._told(error)}") from None
            except (openai.APIError, TimeoutError, ValueError, RecursionError) as error:
                last, reason = error, Reason.SERVER
                busy = isinstance(error, _BUSY) and not isinstance(error, openai.APITimeoutError)
                if busy and time.monotonic() - began < self.settings.patience:
                    waits += 1
                else:
                    tries += 1
                continue
            self._dead = self._refused[request.role] = 0
            self._account(request.role, role, body)
            try:
                if not is_whole:
                    raise ValueError("a reply that was cut off: more max_tokens may help")
                data = parse(raw, request.schema)
                if check is not None:
                    check(data)
                return Reply(data, model or role.model)
            except ValueError as error:
                last, reason = error, Reason.REPLY
                tries, unusable = tries + 1, unusable + 1
        if reason is Reason.SERVER:
            self._dead += 1
            if self._dead >= _DEAD:
                raise self._halt(role, last, f"no reply to {_DEAD} calls in a row: ")
        raise Failed(reason, f"{request.job}: {self._told(last)}", self._redacted(raw[:_SHOWN]))

    def _halt(self, role: Role, error: Any, what: str = "") -> Waiting:
        self.halted = f"{role.url or self.settings.url}: {what}{self._told(error)}"
        return Waiting(self.halted)

    def _told(self, error: Any) -> str:
        return self._redacted(told(error))

    def _redacted(self, text: str) -> str:
        """Without the keys, which a server may send back."""
        for role in self.settings.roles.values():
            if key := self._keys.get(role.key):
                text = text.replace(key, "***")
        return text

    async def _post(self, request: Request, role: Role, messages: Any, seed: int) -> Any:
        server = role.url or self.settings.url, role.key
        client = self._clients.get(server)
        if client is None:
            client = make_client(server[0], self._keys.get(role.key, ""))
            self._clients[server] = client
        body: dict[str, Any] = {
            "model": role.model,
            "messages": messages,
            "temperature": role.temperature,
            "top_p": role.top_p,
            "max_tokens": role.max_tokens,
            "seed": seed % 2**31,
        }
        if role.structured:
            schema = {"name": request.job, "schema": request.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        # As plain JSON: typed replies would take the client twice as long (docs/instruct.md). The
        # client's own timeout is that of one read, and a server may drip.
        async with asyncio.timeout(self.settings.timeout):
            return await client.post("/chat/completions", body=body, cast_to=object)

    def _pause(self, number: int, error: Any) -> float:
        """Seconds before a further try: what the server asks for, else longer each time."""
        response = getattr(error, "response", None)
        after = response.headers.get("retry-after", "") if response is not None else ""
        if re.fullmatch(r"\d{1,4}(\.\d+)?", after) and float(after):
            return min(float(after), self.settings.timeout)
        return self.settings.backoff * 2 ** min(number - 1, 6) * random.uniform(0.5, 1.0)

    async def _turn(self) -> None:
        """Waits for this call's turn where calls a minute are limited."""
        if self.settings.per_minute:
            now = time.monotonic()
            self._next = max(self._next, now) + 60 / self.settings.per_minute
            await asyncio.sleep(self._next - now - 60 / self.settings.per_minute)

    def _account(self, name: str, role: Role, body: Any) -> None:
        usage = body.get("usage") if isinstance(body, dict) else None
        usage = usage if isinstance(usage, dict) else {}
        counts = [usage.get(f"{side}_tokens") for side in ("prompt", "completion")]
        settings = self.settings
        if not all(type(n) is int and 0 <= n < 10**9 for n in counts):
            counts = [0, 0]
            if settings.token_budget or settings.cost_budget:
                self.halted = "no budget can be kept: the server does not tell the tokens it uses"
        given, taken = counts
        for what, n in (("input_tokens", given), ("output_tokens", taken)):
            self.usage[what] += n
            self.usage[f"{what} of {name}"] += n
        # Whole numbers, which Beam's counters are: a price per million of a token is a millionth.
        self.usage[COST] += round(given * role.input_price + taken * role.output_price)
        total = self.usage["input_tokens"] + self.usage["output_tokens"]
        if settings.token_budget and total >= settings.token_budget:
            self.halted = f"the budget of {settings.token_budget:,} tokens is spent"
        if settings.cost_budget and self.usage[COST] / 1e6 >= settings.cost_budget:
            self.halted = f"the budget of {settings.cost_budget:g} is spent"


def request_key(request: Request, role: Role, seed: int) -> str:
    """The hash of everything that a reply depends on."""
    media = request.media.digest if request.media else ""
    asked = [FORMAT, request.system, request.user, request.schema, media, seed]
    sampling = [role.model, role.temperature, role.top_p, role.max_tokens, role.structured]
    text = json.dumps([asked, sampling], sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def seed_of(*names: object) -> int:
    """A seed of its own for everything that has a name of its own."""
    text = json.dumps([str(name) for name in names])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) >> 1


def make_client(url: str, api_key: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=url,
        api_key=api_key or "none",  # servers of one's own want none; the client does
        max_retries=0,  # tries are counted here
        http_client=openai.DefaultAioHttpClient(),
    )


async def resolve_models(settings: Settings, keys: Mapping[str, str]) -> Settings:
    """Names the server's own model for every role that has none.

    Raises:
      InputError: a server does not answer, or serves no model.
    """
    roles = dict(settings.roles)
    first: dict[str, str] = {}
    for name, role in roles.items():
        url = role.url or settings.url
        if url not in first:
            is_named = all(r.model for r in roles.values() if (r.url or settings.url) == url)
            first[url] = await _first_model(url, keys.get(role.key, ""), is_named)
        roles[name] = dataclasses.replace(role, model=role.model or first[url])
    return dataclasses.replace(settings, roles=roles)


async def _first_model(url: str, key: str, is_named: bool) -> str:
    """The first that a server lists; "" where it lists none and none is wanted."""
    if not url:
        raise InputError("no model server: give its address, http://HOST:PORT/v1, as --llm")
    try:
        parts = urllib.parse.urlsplit(url)
        is_address = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:
        is_address = False
    if not is_address:
        raise InputError(f"{url}: is no address of a server, http://HOST:PORT/v1")
    client = make_client(url, key)
    try:
        listed = await client.get("/models", cast_to=object, options={"timeout": 30})
        return listed["data"][0]["id"]
    except openai.AuthenticationError as error:
        raise InputError(f"{url}: refuses the key: {told(error)}") from None
    except (openai.APIConnectionError, openai.InternalServerError) as error:
        raise InputError(f"{url}: is no model server that answers: {told(error)}") from None
    except (openai.APIError, ValueError, LookupError, TypeError):
        if is_named:
            return ""
        raise InputError(f"{url}: tells of no model; name one with --model") from None
    finally:
        await client.close()


def told(error: Any) -> str:
    """An error in one line that is short."""
    text = one_line(tidy(str(error))) or type(error).__name__
    return f"{text[:300]}{'...' if len(text) > 300 else ''}"
