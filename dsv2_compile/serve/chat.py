"""Messages to a prompt, by the chat template that came with the model."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from dsv2_compile.engine import strictjson
from dsv2_compile.errors import ModelError
from dsv2_compile.serve.errors import invalid

_MAX_BYTES = 4 << 20
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class ChatTemplate:
    """A template as transformers runs them: same settings of Jinja, same names, so the same prompt."""

    def __init__(self, source: str, special: dict[str, str]) -> None:
        """ModelError if ``source`` is no template. ``special``: bos_token and so on, by name."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        self._special = special
        try:
            self._template: Template = environment.from_string(source)
        except TemplateError as e:
            raise ModelError(f"The chat template is malformed: {e}", "Take it from the published model again.") from e

    def prompt(self, messages: list[dict[str, Any]]) -> str:
        """The text after which the assistant speaks; ApiError where the template refuses the messages."""
        try:
            return self._template.render(
                messages=messages, tools=None, documents=None, add_generation_prompt=True, **self._special
            )
        except (TemplateError, TypeError, ValueError) as e:
            raise invalid(f"The model's chat template does not take these messages: {e}", "messages") from e


def find(root: Path) -> ChatTemplate | None:
    """The template in the engine at ``root``: a file of its own, or the (default) one of tokenizer_config.json."""
    path, alone = root / "tokenizer_config.json", root / "chat_template.jinja"
    settings: Any = {}
    try:
        if path.exists():
            settings = strictjson.loads(path.read_bytes(), _MAX_BYTES, max_string=_MAX_BYTES)
        source = alone.read_text() if alone.exists() else _default(settings.get("chat_template"))
    except (strictjson.JsonError, UnicodeDecodeError, AttributeError) as e:
        raise ModelError(f"The chat template cannot be read: {e}", "Take it from the published model again.") from e
    special = {name: text for name in _SPECIAL if (text := _text(settings.get(name)))}
    return None if source is None else ChatTemplate(source, special)


def _default(found: Any) -> str | None:
    """``found`` may also be a list of templates with names."""
    if isinstance(found, list):
        found = next((t.get("template") for t in found if isinstance(t, dict) and t.get("name") == "default"), None)
    return found if isinstance(found, str) else None


def _text(token: Any) -> str:
    """A special token is its text, or an object that has it."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else ""


def _tojson(value: Any, indent: int | None = None) -> str:
    """Jinja's own would escape for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)
