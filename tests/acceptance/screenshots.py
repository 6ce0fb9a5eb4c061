"""The pictures of README: `make screenshots` makes them anew, of an installation with invented data."""

from __future__ import annotations

import asyncio
import math
import os
import random
import subprocess
import sys
import tempfile
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import httpx
from playwright.async_api import async_playwright

from gasket.embedded import EmbeddedDatabase
from tests.acceptance.browser import CHROMIUM
from tests.acceptance.installation import ADMIN_TOKEN, REPOSITORY
from tests.acceptance.processes import free_port

PAGES = {"overview": "/ui", "usage": "/ui/usage?by=key"}
"""The name of each picture in `docs/`, and its page."""

_PEOPLE = ("ada@example.com", "grace@example.com", "linus@example.com", "margaret@example.com")
_KEYS = ("laptop", "nightly evaluation", "support assistant", "notebook", "code review")
_MODELS = ("llama-3.3-70b", "qwen-3-coder", "gpt-5-mini")
_READY_WITHIN = 120.0
_STORE = """
INSERT INTO openai_backends (name, base_url) VALUES
    ('gpu-1', 'http://gpu-1.internal:8000/v1'), ('gpu-2', 'http://gpu-2.internal:8000/v1'),
    ('openai', 'https://api.openai.com/v1');
INSERT INTO backend_profiles (name) VALUES ('team');
"""


def main() -> None:
    """Start an installation, fill it, and take the pictures."""
    with tempfile.TemporaryDirectory(prefix="gasket-screenshots-") as folder:
        Path(folder).chmod(0o711)  # root's server runs as another account
        data, port = Path(folder) / "data", free_port()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GASKET_")}
        environment |= {"GASKET_DATA_DIR": str(data), "GASKET_ADMIN_TOKEN": ADMIN_TOKEN}
        environment.pop("DATABASE_URL", None)
        replica = subprocess.Popen([sys.executable, "-m", "gasket", "run", "--port", str(port)], env=environment)
        try:
            asyncio.run(_fill_and_take(f"http://127.0.0.1:{port}", EmbeddedDatabase(data).url))
        finally:
            replica.terminate()
            replica.wait()


async def _fill_and_take(address: str, database_url: str) -> None:
    await _until_ready(address)
    await _fill(database_url)
    await _take(address)


async def _until_ready(address: str) -> None:
    async with asyncio.timeout(_READY_WITHIN), httpx.AsyncClient(base_url=address, trust_env=False) as client:
        while True:
            with suppress(httpx.TransportError):
                if (await client.get("/health/ready")).status_code == 200:
                    return
            await asyncio.sleep(0.2)


async def _fill(url: str) -> None:
    """A week of use: more by day than by night, and a few errors. Always the same numbers."""
    chance, now = random.Random(13), datetime.now(UTC)
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(_STORE)
        slot = now.replace(minute=now.minute // 5 * 5, second=0, microsecond=0)
        slots = [row for back in range(300) for row in _slot(chance, slot - timedelta(minutes=5 * back))]
        await connection.executemany("INSERT INTO usage_slots VALUES ($1, $2, $3, $4, $5)", slots)
        for number, name in enumerate(_KEYS):
            key = await connection.fetchval(
                "INSERT INTO api_keys (name, user_email, profile_id, key_value, key_preview) "
                "VALUES ($1, $2, 1, $3, 'gsk_...') RETURNING id",
                name,
                _PEOPLE[number % len(_PEOPLE)],
                f"{number:064x}",
            )
            for back in range(7 * 24):
                hour = now.replace(minute=0, second=0, microsecond=0) - timedelta(hours=back)
                requests = int(_busy(hour) * chance.uniform(20, 60) / (number + 1))
                await connection.execute(
                    "INSERT INTO usage_totals (hour, key_id, profile_id, backend_id, model, user_email, requests, "
                    "prompt_tokens, completion_tokens) VALUES ($1, $2, 1, 1, $3, $4, $5, $6, $7)",
                    hour,
                    key,
                    _MODELS[number % len(_MODELS)],
                    _PEOPLE[number % len(_PEOPLE)],
                    requests,
                    requests * chance.randint(600, 900),
                    requests * chance.randint(150, 300),
                )
    finally:
        await connection.close()


def _slot(chance: random.Random, start: datetime) -> list[tuple[datetime, int, int, int, int]]:
    requests = _busy(start) * chance.uniform(60, 90)
    rows = []
    for bucket in range(64, 104):
        count = round(requests * math.exp(-(((bucket - 80) / 8) ** 2)) / 14)
        failed = 1 if count and chance.random() < 0.03 else 0
        if count:
            rows.append((start, bucket, count, failed, count * chance.randint(700, 1100)))
    return rows


def _busy(moment: datetime) -> float:
    """From 0.2 at night to 1 in the afternoon."""
    return 0.6 + 0.4 * math.sin((moment.hour + moment.minute / 60 - 8) / 24 * 2 * math.pi)


async def _take(address: str) -> None:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--disable-dev-shm-usage"])
        context = await browser.new_context(
            base_url=address, viewport={"width": 1280, "height": 800}, device_scale_factor=1
        )
        await context.request.post("/ui/sign-in", form={"token": ADMIN_TOKEN}, max_redirects=0)
        page = await context.new_page()
        for name, path in PAGES.items():
            await page.goto(path)
            await page.screenshot(path=REPOSITORY / "docs" / f"{name}.png")
        await browser.close()


if __name__ == "__main__":
    main()
