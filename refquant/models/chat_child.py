"""Render a chat template: the program that `refquant.models.chat` runs in a process of its own.

Standard input holds one JSON object {"template", "variables", "seconds", "bytes", "characters"}; standard output gets
{"text"}, or {"error"} with what to tell the user. It imports Jinja2 and nothing of refquant.
"""

import contextlib
import json
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class RefusedError(TemplateError):
    """What a template raises itself, with `raise_exception`."""


class Generation(Extension):
    """The block `generation` that marks what an assistant wrote for training; rendering takes its body as it is."""

    tags = {"generation"}  # noqa: RUF012  # as its base declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The filter `tojson` as chat templates mean it: Jinja2's own escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message: object) -> NoReturn:
    """How a template refuses a conversation."""
    raise RefusedError(str(message))


def strftime_now(form: str) -> str:
    """The local time now."""
    return datetime.now().strftime(form)


def environment() -> ImmutableSandboxedEnvironment:
    """The environment that the authors of chat templates expect, in Jinja2's sandbox."""
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation])
    made.filters["tojson"] = to_json
    made.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
    return made


def limit(seconds: int, size: int) -> None:
    """Let the system stop this process at so much processor time and memory, where it can."""
    try:
        import resource
    except ImportError:  # Windows: the parent's clock is the limit
        return
    for kind, most in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, size)):
        with contextlib.suppress(ValueError, OSError):  # a lower limit is in force already, or this one cannot be set
            resource.setrlimit(kind, (most, most))


def render(template: str, variables: dict[str, Any], characters: int) -> str:
    """The text of a template, piece by piece, so that an endless one ends at the limit."""
    pieces, length = [], 0
    for piece in environment().from_string(template).generate(**variables):
        pieces.append(piece)
        length += len(piece)
        if length > characters:
            raise RefusedError(f"it wrote more than {characters} characters, the limit")
    return "".join(pieces)


def explain(error: Exception) -> str:
    """What went wrong, in words for the user."""
    reasons: list[tuple[type[Exception], Callable[[], str]]] = [
        (RefusedError, lambda: f"the chat template refused: {error}"),
        (SecurityError, lambda: f"the chat template tried what the sandbox forbids: {error}"),
        (MemoryError, lambda: "the chat template took more memory than the limit"),
    ]
    for kind, reason in reasons:
        if isinstance(error, kind):
            return reason()
    return f"the chat template failed: {type(error).__name__}: {error}"


def main() -> None:
    """Answer one request."""
    request = json.load(sys.stdin)
    limit(request["seconds"], request["bytes"])
    try:
        answer = {"text": render(request["template"], request["variables"], request["characters"])}
    except Exception as error:  # a template may fail in any way that Python can
        answer = {"error": explain(error)[:1000]}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
