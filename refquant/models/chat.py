"""Chat templates: a conversation as the text that a model was trained to continue.

A template is a program out of somebody's file. It runs in Jinja2's immutable sandbox, which keeps it from Python's
internals, and in a process of its own, because a sandbox bounds neither time nor memory: `{{ 9 ** (9 ** 9) }}` is
a legal template. What is bounded:

| what | limit |
|---|---|
| the time on the clock, and the processor time (not on Windows) | SECONDS |
| the memory of the process (where the system enforces it, as Linux does) | BYTES |
| the text that comes out | CHARACTERS |

Templates get `messages`, `add_generation_prompt`, the special tokens by role (`bos_token`, …), `tools` and `documents`
(none), `raise_exception`, `strftime_now`, `tojson`, loop controls and `generation` blocks, as in transformers.
"""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from refquant.errors import MissingExtraError, ModelError, RefquantError
from refquant.models.tokenizer import Ids, Tokenizer

SECONDS = 10
BYTES = 2**30
CHARACTERS = 2**22

_CHILD = Path(__file__).with_name("chat_child.py")

Message = Mapping[str, str]


def encode_chat(tokenizer: Tokenizer, messages: Sequence[Message]) -> Ids:
    """The token ids of a conversation, up to where the model's answer begins.

    Args:
        tokenizer: the model's; its chat template writes BOS itself where one belongs.
        messages: `{"role": "user", "content": "…"}`, in order.

    Returns:
        int64 (tokens,).

    Raises:
        ModelError: the tokenizer has no chat template, or it refuses the conversation, fails, or runs into a limit.
        MissingExtraError: Jinja2 is not installed.
    """
    if tokenizer.chat_template is None:
        raise ModelError("the model has no chat template: give it a plain prompt")
    return tokenizer.encode(render_chat(tokenizer.chat_template, messages, tokenizer.special_tokens))


def render_chat(template: str, messages: Sequence[Message], special_tokens: Mapping[str, str]) -> str:
    """The text of a conversation under a template, up to where the model's answer begins.

    Raises:
        ModelError: the template refuses the conversation, fails, or runs into a limit; the message says which.
        MissingExtraError: Jinja2 is not installed.
    """
    if importlib.util.find_spec("jinja2") is None:
        raise MissingExtraError("jinja2", "chat", "a chat template")
    variables = {
        **special_tokens,
        "messages": [dict(message) for message in messages],
        "add_generation_prompt": True,
        "tools": None,
        "documents": None,
    }
    limits = {"seconds": SECONDS, "bytes": BYTES, "characters": CHARACTERS}
    answer = _ask_child(json.dumps({"template": template, "variables": variables, **limits}))
    if "error" in answer:
        raise ModelError(answer["error"])
    try:
        answer["text"].encode("utf-8")
    except UnicodeEncodeError as error:
        raise RefquantError(f"the chat: {error.reason} in the rendered text; decode the messages first") from None
    return answer["text"]


def _ask_child(request: str) -> dict[str, str]:
    # -P: the folder of the script does not join the path, where its neighbours would pass for other modules
    command = [sys.executable, "-P", str(_CHILD)]
    try:
        child = subprocess.run(
            command, input=request.encode("ascii"), capture_output=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise ModelError(f"the chat template ran for more than {SECONDS} seconds, the limit") from None
    try:
        answer: dict[str, str] = json.loads(child.stdout)
    except ValueError:
        why = child.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2] or f"exit code {child.returncode}"
        raise ModelError(f"the chat template broke the process that renders it ({why[:200]})") from None
    return answer
