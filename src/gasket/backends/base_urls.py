"""Forms that a backend's base URL may have, for one that does not work. Pure."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit

# Where servers have the OpenAI API: most of them; OpenRouter and others; Groq and Azure; Gemini.
_USUAL_PATHS = ("/v1", "/api/v1", "/openai/v1", "/v1beta/openai")
ENDPOINTS = ("/chat/completions", "/completions", "/embeddings", "/messages", "/models", "/responses")
"""What follows a base URL, and is sometimes written into it."""


def without_endpoint(path: str) -> str:
    """The path of a base URL without the endpoint that it may end in."""
    path = path.rstrip("/")
    return next((path.removesuffix(endpoint) for endpoint in ENDPOINTS if path.endswith(endpoint)), path)


def other_base_urls(base_url: str) -> list[str]:
    """Base URLs on the same server that may be meant, the likeliest first."""
    parts = urlsplit(base_url)
    path = parts.path.rstrip("/")
    stem = without_endpoint(path)
    shorter = stem.removesuffix("/v1")
    paths = [stem, shorter, *(shorter + usual for usual in _USUAL_PATHS), "/v1"]
    others = dict.fromkeys(other for other in paths if other != path)
    return [urlunsplit((parts.scheme, parts.netloc, other, parts.query, "")) for other in others]


def how_to_change(base_url: str, to: str) -> str:
    """In words, how one base URL becomes the other one."""
    before, after = urlsplit(base_url).path.rstrip("/"), urlsplit(to).path
    if after.startswith(f"{before}/"):
        return f"add {after.removeprefix(before)} to base_url"
    if before.startswith(f"{after}/"):
        return f"take {before.removeprefix(after)} off base_url"
    return f"set the path of base_url to {after}"
