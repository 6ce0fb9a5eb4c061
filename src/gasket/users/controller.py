"""`/api/users`."""

from __future__ import annotations

from typing import Any

from litestar import Controller, Request, delete, get
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.params import FromPath, SkipValidation
from litestar.response import Stream

from gasket.access.authentication import identity_of
from gasket.access.origins import origin_as
from gasket.db import Transactions
from gasket.errors import ConflictError
from gasket.http import problems
from gasket.users.addresses import Sign
from gasket.users.erasure import Eraser
from gasket.users.export import Export
from gasket.users.schemas import Erased


class UserController(Controller):
    """People, known by their addresses, whatever the case of the letters."""

    path = "/users"
    tags = ("users",)

    @delete("/{email:str}", status_code=200, summary="Erase a person", responses=problems(ConflictError))
    async def erase(
        self,
        request: Request[Any, Any, State],
        transaction: NamedDependency[SkipValidation[Transactions]],
        sign: NamedDependency[SkipValidation[Sign]],
        email: FromPath[str],
    ) -> Erased:
        """Keys are revoked, tokens of that name and sessions end, and a pseudonym takes the place of the address: in
        keys, usage, the audit and archives. It may be sent again, and then changes what has come since."""
        identity = identity_of(request)
        if identity.email is not None and identity.email.lower() == email.lower():
            raise ConflictError("Nobody can erase their own address; the audit would name it again.")
        origin = origin_as(request.scope, identity, by_page=identity.session_id is not None)
        return await Eraser(transaction, request.app.state.schema, sign, origin).erase(email)

    @get(
        "/{email:str}/export",
        summary="Show what is kept of a person",
        media_type="application/json",
        responses=problems(),
    )
    async def export(
        self,
        request: Request[Any, Any, State],
        transaction: NamedDependency[SkipValidation[Transactions]],
        email: FromPath[str],
    ) -> Stream:
        """Rows by table, without secrets and digests. The answer is written while it is read. It is an entry of the
        audit: who has exported whom."""
        identity = identity_of(request)
        origin = origin_as(request.scope, identity, by_page=identity.session_id is not None)
        export = await Export(transaction, request.app.state.schema).begin(email, origin)
        return Stream(export, media_type="application/json")
