"""From a page that shows a key to a chat with it."""

from __future__ import annotations

import openai
from playwright.async_api import Page

from tests.acceptance.gateway import Tenant
from tests.acceptance.processes import until


async def shown_key(page: Page) -> str:
    """The key on the page that shows it once."""
    key = await page.locator("[data-text]").first.text_content()
    assert key
    return key


def _client(tenant: Tenant, key: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{tenant.replica.base_url}/v1", api_key=key, max_retries=0)


async def chat(tenant: Tenant, key: str) -> str | None:
    """The answer to a chat with this key."""
    async with _client(tenant, key) as client:
        answer = await client.chat.completions.create(model="model-a", messages=[{"role": "user", "content": "hi"}])
        return answer.choices[0].message.content


async def refused(tenant: Tenant, key: str) -> None:
    """Wait until the replica has heard that the key has ended."""
    async with _client(tenant, key) as client:

        async def is_refused() -> bool:
            try:
                await client.models.list()
            except openai.AuthenticationError:
                return True
            return False

        await until(is_refused, 30, "an end of the key")
