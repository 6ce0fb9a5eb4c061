"""The limits in the bodies of `/api`, the same for keys and profiles."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

RequestsPerMinute = Annotated[
    int, Meta(ge=1, le=10**9, description="Of all replicas together; null: unlimited", examples=[60])
]
TokensPerWindow = Annotated[
    int,
    Meta(
        ge=1,
        le=10**15,
        description="Tokens of requests and answers in `token_window`; null: unlimited",
        examples=[10**6],
    ),
]
TokenWindow = Annotated[
    int, Meta(ge=1, le=2_678_400, description="Seconds that tokens_per_window is about", examples=[86_400])
]
RequestsAtOnce = Annotated[
    int,
    Meta(ge=1, le=100_000, description="Requests at once, on all replicas together; null: unlimited", examples=[10]),
]
