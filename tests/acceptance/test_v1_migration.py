"""A newer release changes the tables of the key check under an older replica that goes on serving."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections import Counter
from contextlib import AsyncExitStack

from tests.acceptance.gateway import Tenant, exchange, gateway_on, request
from tests.acceptance.installation import Installation

CHANGES = [
    ('op.add_column("api_keys", sa.Column("extra", sa.Text()))', 'op.drop_column("api_keys", "extra")'),
    (
        'op.add_column("backend_profiles", sa.Column("extra", sa.Integer(), server_default="1", nullable=False))',
        'op.drop_column("backend_profiles", "extra")',
    ),
    (
        'op.alter_column("api_keys", "name", type_=sa.String(200), existing_type=sa.Text())',
        'op.alter_column("api_keys", "name", type_=sa.Text(), existing_type=sa.String(200))',
    ),
    (
        'op.alter_column("backend_profiles", "allowed_models", type_=sa.ARRAY(sa.String(200)))',
        'op.alter_column("backend_profiles", "allowed_models", type_=sa.ARRAY(sa.Text()))',
    ),
    (
        'op.create_index("ix_extra", "api_keys", ["created_at"])',
        'op.drop_index("ix_extra")',
    ),
    (
        'op.add_column("profile_backends", sa.Column("weight", sa.Integer()))',
        'op.drop_column("profile_backends", "weight")',
    ),
]


async def make_keys(installation: Installation, tenant: Tenant, count: int) -> list[str]:
    """Keys of the tenant's profile; 2,000 of them over the API would take half a minute."""
    keys = [f"gsk_{secrets.token_hex(24)}" for _ in range(count)]
    look = await installation.look()
    await look.execute(
        "INSERT INTO api_keys (user_email, name, key_value, key_preview, profile_id) "
        "SELECT 'ada@example.com', 'many', encode(sha256(convert_to(key, 'UTF8')), 'hex'), 'gsk_...', $2 "
        "FROM unnest($1::text[]) AS key",
        keys,
        tenant.profile,
    )
    return keys


async def test_not_one_request_fails(installation: Installation) -> None:
    """Each request has a key that the replica has never seen: every one of them looks into the changing tables."""
    replica = installation.replica({"GASKET_RELEASE": "1.0"})
    async with AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(gateway_on(installation, replica))
        tenant = await gateway.tenant()
        keys = itertools.cycle(await make_keys(installation, tenant, 3000))
        for number, (upgrade, downgrade) in enumerate(CHANGES):
            installation.project.add_revision(f"change{number}", upgrade, downgrade)
        migrated = asyncio.Event()
        statuses: Counter[int] = Counter()
        bodies: list[bytes] = []

        async def ask() -> None:
            while not migrated.is_set():
                got = await exchange(replica, request(next(keys)))
                statuses[got.status] += 1
                if got.status != 200:
                    bodies.append(got.body)

        asking = [asyncio.create_task(ask()) for _ in range(6)]
        for command in (("upgrade", "head"), ("downgrade", f"-{len(CHANGES)}")):
            done = await installation.run("alembic", *command)
            assert done.exit_code == 0, done.output
        migrated.set()
        await asyncio.gather(*asking)
        assert bodies == []
        assert set(statuses) == {200}
        assert statuses[200] > 100, "too few requests to show anything"
        await replica.stop()
        assert "Traceback" not in replica.output, str(replica)
