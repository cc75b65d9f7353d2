"""The fields of a request: which there are, what they may hold, and which can be left unread.

A field that would change the answer and is not supported is refused: an answer that quietly is another one than was
asked for is worse than none.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dsv2_compile.engine import strictjson
from dsv2_compile.errors import UsageError
from dsv2_compile.runtime.sampling import Sampling
from dsv2_compile.serve.errors import ApiError, invalid, refused

Prompt = str | list[int]

MAX_SEQUENCES = 128
"""Of one request: prompts times n."""
MAX_STOPS, MAX_STOP_LENGTH, MAX_STOP_IDS = 16, 1000, 64
DEFAULT_MAX_TOKENS = 16
"""Of completions, as OpenAI has it. A chat ends by itself, or where the context is full."""

_COMMON = {
    *("model", "max_tokens", "temperature", "top_p", "top_k", "seed", "n", "stop", "stop_token_ids"),
    *("stream", "stream_options", "return_token_ids"),
}
_COMPLETION, _CHAT = _COMMON | {"prompt"}, _COMMON | {"messages", "max_completion_tokens"}
_IGNORED = {
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    *("parallel_tool_calls", "prediction"),
}
"""Fields that do not change the answer."""
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "presence_penalty": (0,),
    "reasoning_effort": (),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": (),
    "web_search_options": (),
}
"""Fields that are not supported, and the values that ask for nothing; so does null."""
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""As OpenAI has them -> as chat templates have them."""


@dataclass(frozen=True)
class Asked:
    """``max_new_tokens`` None: as many as fit. ``n``: answers to each prompt. ``token_ids``: they are told as well."""

    model: str | None
    max_new_tokens: int | None
    sampling: Sampling
    n: int
    stops: tuple[str, ...]
    stop_token_ids: frozenset[int]
    stream: bool
    include_usage: bool
    token_ids: bool


def parse(data: bytes, most: int) -> dict[str, Any]:
    """A body as an object; ApiError if it is none."""
    try:
        value = strictjson.loads(data, most, max_elements=most, max_string=most)
    except strictjson.JsonError as e:
        raise invalid(f"The body is malformed: {e}.") from e
    if not isinstance(value, dict):
        raise invalid("The body is not a JSON object.")
    return value


def completion(body: dict[str, Any]) -> tuple[list[Prompt], Asked]:
    _require_known(body, _COMPLETION)
    prompts = _prompts(body.get("prompt"))
    return prompts, _asked(body, len(prompts), body.get("max_tokens"), DEFAULT_MAX_TOKENS)


def chat(body: dict[str, Any]) -> tuple[list[dict[str, Any]], Asked]:
    """Messages, each of a role that templates know and a text."""
    _require_known(body, _CHAT)
    found = body.get("messages")
    if not isinstance(found, list) or not found:
        raise invalid("messages must be a list of at least one message.", "messages")
    messages = [_message(m, f"messages[{i}]") for i, m in enumerate(found)]
    tokens = body.get("max_completion_tokens")
    return messages, _asked(body, 1, body.get("max_tokens") if tokens is None else tokens, None)


def _require_known(body: dict[str, Any], known: set[str]) -> None:
    for name, value in body.items():
        if name in known or name in _IGNORED or value is None:
            continue
        if name not in _NEUTRAL:
            raise invalid(f"There is no field {name[:80]!r} here.", name[:80], "unknown_field")
        if not any(_same(value, v) for v in _NEUTRAL[name]):
            raise invalid(f"{name} is not supported: leave it out.", name, "unsupported_field")


def _same(value: Any, other: Any) -> bool:
    """Equal, a flag and a number never being: logprobs 0 asks for more than logprobs false."""
    return bool(value == other) and isinstance(value, bool) == isinstance(other, bool)


def _asked(body: dict[str, Any], prompts: int, max_tokens: Any, default: int | None) -> Asked:
    n = _integer("n", body.get("n"), 1)
    if prompts * n > MAX_SEQUENCES:
        raise invalid(f"{prompts} prompts and n {n} are more than {MAX_SEQUENCES} sequences.", "n")
    stream = _flag("stream", body.get("stream"))
    return Asked(
        model=_string("model", body.get("model")),
        max_new_tokens=default if max_tokens is None else _integer("max_tokens", max_tokens, 1, low=1),
        sampling=_sampling(body),
        n=n,
        stops=_stops(body.get("stop")),
        stop_token_ids=_stop_ids(body.get("stop_token_ids")),
        stream=stream,
        include_usage=_include_usage(body.get("stream_options"), stream),
        token_ids=_flag("return_token_ids", body.get("return_token_ids")),
    )


def _sampling(body: dict[str, Any]) -> Sampling:
    seed = body.get("seed")
    drawn = secrets.randbits(63) if seed is None else _integer("seed", seed, 0, low=-(2**63)) % 2**64
    try:
        return Sampling(
            _number("temperature", body.get("temperature"), 1.0),
            _integer("top_k", body.get("top_k"), 0, low=0),
            _number("top_p", body.get("top_p"), 1.0),
            drawn,
        )
    except UsageError as e:
        raise refused(e, e.remedy.split()[0]) from e


def _prompts(value: Any) -> list[Prompt]:
    """A text, several, token ids, or several lists of them."""
    if isinstance(value, str) or _are(value, int):
        return [value]
    if _are(value, str) or (isinstance(value, list) and value and all(_are(v, int) for v in value)):
        return [*value]
    raise invalid("prompt must be a text, a list of token ids, or a list of either; not empty.", "prompt")


def _are(value: Any, kind: type) -> bool:
    """Whether ``value`` is a list of at least one ``kind``; True is no int here."""
    return isinstance(value, list) and bool(value) and all(type(v) is kind for v in value)


def _message(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise invalid(f"{where} is not an object.", "messages")
    more = [name for name, v in value.items() if name not in ("role", "content", "name") and v not in (None, [])]
    if more:
        raise invalid(f"{where} has {more[0][:80]!r}, which is not supported.", "messages", "unsupported_field")
    role, content = value.get("role"), value.get("content")
    if not isinstance(role, str) or role not in _ROLES:
        raise invalid(f"The role of {where} is none of {', '.join(_ROLES)}.", "messages")
    if isinstance(content, list):
        content = _joined(content, where)
    if not isinstance(content, str):
        raise invalid(f"The content of {where} is not a text.", "messages")
    named = {"name": name} if isinstance(name := value.get("name"), str) else {}
    return {"role": _ROLES[role], "content": content, **named}


def _joined(parts: list[Any], where: str) -> str:
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise invalid(f"The content of {where} has a part that is not a text.", "messages", "unsupported_field")
    return "".join(part["text"] for part in parts)


def _stops(value: Any) -> tuple[str, ...]:
    stops: Sequence[Any] = [value] if isinstance(value, str) else value or []
    if (
        not isinstance(stops, list)
        or len(stops) > MAX_STOPS
        or not all(isinstance(s, str) and 0 < len(s) <= MAX_STOP_LENGTH for s in stops)
    ):
        raise invalid(
            f"stop must be at most {MAX_STOPS} texts of 1 to {MAX_STOP_LENGTH} characters, in a list.", "stop"
        )
    return tuple(stops)


def _stop_ids(value: Any) -> frozenset[int]:
    if value in (None, []):
        return frozenset()
    if not _are(value, int) or len(value) > MAX_STOP_IDS:
        raise invalid(f"stop_token_ids must be a list of at most {MAX_STOP_IDS} token ids.", "stop_token_ids")
    return frozenset(value)


def _include_usage(options: Any, stream: bool) -> bool:
    if options is None:
        return False
    if not stream or not isinstance(options, dict) or options.keys() - {"include_usage", "include_obfuscation"}:
        raise invalid("stream_options is an object with include_usage, for stream only.", "stream_options")
    return _flag("include_usage", options.get("include_usage"))


def _flag(name: str, value: Any) -> bool:
    if value is not None and not isinstance(value, bool):
        raise _not_a(name, "true or false")
    return bool(value)


def _string(name: str, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise _not_a(name, "a text")
    return value


def _integer(name: str, value: Any, default: int, low: int = 1) -> int:
    if value is None:
        return default
    if type(value) is not int or value < low:
        raise _not_a(name, f"an integer of at least {low}")
    return value


def _number(name: str, value: Any, default: float) -> float:
    if value is None:
        return default
    if type(value) not in (int, float):
        raise _not_a(name, "a number")
    return float(value)


def _not_a(name: str, kind: str) -> ApiError:
    return invalid(f"{name} must be {kind}.", name)
