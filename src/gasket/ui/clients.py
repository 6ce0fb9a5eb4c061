"""Ready settings of clients: what somebody with a new key has to copy."""

from __future__ import annotations

import json
import shlex
from typing import Any

import msgspec

from gasket.access.cookies import own_url
from gasket.errors import SignInError

UNNAMED_MODEL = "gpt-5-mini"
"""Where the profile allows every model and no backend lists its own."""
_OPEN_WEBUI_READS = (
    "In the environment of its container, for its first start. It keeps them, so later they are changed in its Admin "
    "Panel, under Settings, Connections"
)


class Part(msgspec.Struct, frozen=True):
    """A text to copy, and where it goes."""

    where: str
    text: str


class Snippet(msgspec.Struct, frozen=True):
    """What goes into a client; one of its parts has the key."""

    client: str
    parts: tuple[Part, ...]


def own_origin(scope: Any) -> str:
    """`https://host`, as the browser has it in its address bar; a name to be replaced where no host is told."""
    try:
        return own_url(scope)
    except SignInError:
        return "https://gasket.example"  # the key is made already, and shown this once: no error page


def snippets(origin: str, key: str, model: str | None) -> list[Snippet]:
    """For each client. `origin` is this installation's, without a path."""
    base, chosen = f"{origin}/v1", model or UNNAMED_MODEL
    return [
        Snippet("curl", (Part("In a shell", _curl(base, key, chosen)),)),
        Snippet("openai-python", (Part("pip install openai", _python(base, key, chosen)),)),
        Snippet("openai-node", (Part("npm install openai", _node(base, key, chosen)),)),
        Snippet("Claude Code", (Part("In the shell that starts it", _claude_code(origin, key, chosen)),)),
        Snippet(
            "Codex",
            (
                Part("~/.codex/config.toml", _codex(base, chosen)),
                Part("In the shell that starts it", f"export GASKET_KEY={key}\ncodex"),
            ),
        ),
        Snippet("Continue", (Part("~/.continue/config.yaml", _continue(base, key, chosen)),)),
        Snippet("Open WebUI", (Part(_OPEN_WEBUI_READS, _open_webui(base, key)),)),
    ]


def _curl(base: str, key: str, model: str) -> str:
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello"}]})
    return (
        f"curl {base}/chat/completions \\\n"
        f"  -H {shlex.quote(f'Authorization: Bearer {key}')} \\\n"
        f"  -H 'Content-Type: application/json' \\\n"
        f"  -d {shlex.quote(body)}"
    )


def _python(base: str, key: str, model: str) -> str:
    return (
        "from openai import OpenAI\n\n"
        f"client = OpenAI(base_url={json.dumps(base)}, api_key={json.dumps(key)})\n"
        "answer = client.chat.completions.create(\n"
        f"    model={json.dumps(model)},\n"
        '    messages=[{"role": "user", "content": "Hello"}],\n'
        ")\n"
        "print(answer.choices[0].message.content)"
    )


def _node(base: str, key: str, model: str) -> str:
    return (
        'import OpenAI from "openai";\n\n'
        f"const client = new OpenAI({{ baseURL: {json.dumps(base)}, apiKey: {json.dumps(key)} }});\n"
        "const answer = await client.chat.completions.create({\n"
        f"  model: {json.dumps(model)},\n"
        '  messages: [{ role: "user", content: "Hello" }],\n'
        "});\n"
        "console.log(answer.choices[0].message.content);"
    )


def _claude_code(origin: str, key: str, model: str) -> str:
    quoted = shlex.quote(model)
    return (
        f"export ANTHROPIC_BASE_URL={origin}\n"
        f"export ANTHROPIC_AUTH_TOKEN={key}\n"
        f"export ANTHROPIC_MODEL={quoted}\n"
        # Of its subagents; without it they ask for a model of Anthropic's by name.
        f"export ANTHROPIC_DEFAULT_HAIKU_MODEL={quoted}\n"
        "claude"
    )


def _codex(base: str, model: str) -> str:
    return (
        f"model = {json.dumps(model)}\n"
        'model_provider = "gasket"\n\n'
        "[model_providers.gasket]\n"
        'name = "Gasket"\n'
        f"base_url = {json.dumps(base)}\n"
        'env_key = "GASKET_KEY"\n'
        'wire_api = "responses"'
    )


def _continue(base: str, key: str, model: str) -> str:
    return (
        "name: Gasket\n"
        "version: 1.0.0\n"
        "schema: v1\n"
        "models:\n"
        f"  - name: {json.dumps(model)}\n"
        "    provider: openai\n"
        f"    model: {json.dumps(model)}\n"
        f"    apiBase: {base}\n"
        f"    apiKey: {key}"
    )


def _open_webui(base: str, key: str) -> str:
    return f"OPENAI_API_BASE_URL={base}\nOPENAI_API_KEY={key}"
