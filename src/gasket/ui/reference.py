"""The API reference, made of our own OpenAPI document: no asset of others, and no internet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from litestar import get
from litestar.exceptions import NotFoundException
from litestar.params import FromPath
from litestar.response import Template

from gasket.ui.pages import PageRequest, page

_REFERENCE = "#/components/schemas/"
_METHODS = ("get", "post", "put", "patch", "delete")
_WORDS = {"date-time": "timestamp", "date": "date", "email": "address"}

Json = Mapping[str, Any]


class Kind(msgspec.Struct, frozen=True):
    """The type of a value in words; `schema` is the name of the object in it, if there is one."""

    words: str
    schema: str | None = None


class Field(msgspec.Struct, frozen=True):
    """A parameter, or a field of an object."""

    name: str
    kind: Kind
    required: bool
    description: str
    place: str = ""


class Answer(msgspec.Struct, frozen=True):
    """A status that an operation may answer with."""

    status: str
    description: str
    kind: Kind | None


class Operation(msgspec.Struct, frozen=True):
    """A method of a path."""

    method: str
    path: str
    summary: str
    description: str
    tag: str
    parameters: list[Field]
    body: Kind | None
    answers: list[Answer]


@get("/ui/reference", sync_to_thread=False)
def reference(request: PageRequest) -> Template:
    """All operations, by their tags."""
    document = request.app.state.openapi()
    groups: dict[str, list[Operation]] = {}
    for operation in operations_of(document):
        groups.setdefault(operation.tag, []).append(operation)
    return page(request, "reference.html", groups=groups, description=document["info"].get("description", ""))


@get("/ui/reference/{tag:str}", sync_to_thread=False)
def reference_of(request: PageRequest, tag: FromPath[str]) -> Template:
    """The operations of one tag, and the objects that they take and give."""
    document = request.app.state.openapi()
    operations = [operation for operation in operations_of(document) if operation.tag == tag]
    if not operations:
        raise NotFoundException
    return page(request, "reference_of.html", tag=tag, operations=operations, schemas=_schemas(document, operations))


def operations_of(document: Json) -> Iterator[Operation]:
    """Every operation, in the order of the document."""
    for path, item in document["paths"].items():
        for method in _METHODS:
            if method in item:
                yield _operation(method.upper(), path, item[method])


def _operation(method: str, path: str, found: Json) -> Operation:
    parameters = [
        Field(
            entry["name"],
            kind_of(entry.get("schema", {})),
            bool(entry.get("required")),
            entry.get("description") or "",
            entry["in"],
        )
        for entry in found.get("parameters", ())
    ]
    answers = [
        Answer(status, answer.get("description", ""), _content(answer))
        for status, answer in sorted(found.get("responses", {}).items())
    ]
    return Operation(
        method=method,
        path=path,
        summary=found.get("summary", ""),
        description=found.get("description", ""),
        tag=next(iter(found.get("tags", ())), "other"),
        parameters=parameters,
        body=_content(found.get("requestBody", {})),
        answers=answers,
    )


def _content(found: Json) -> Kind | None:
    for content in found.get("content", {}).values():
        if schema := content.get("schema"):
            return kind_of(schema)
    return None


def kind_of(schema: Json) -> Kind:
    """`list of KeyOut`, `integer or null`, `one of asc, desc`."""
    if reference := schema.get("$ref"):
        name = str(reference).removeprefix(_REFERENCE)
        return Kind(_shown(name), name)
    if choices := schema.get("oneOf") or schema.get("anyOf"):
        kinds = [kind_of(choice) for choice in choices]
        named = next((kind.schema for kind in kinds if kind.schema), None)
        return Kind(" or ".join(dict.fromkeys(kind.words for kind in kinds)), named)
    if values := schema.get("enum"):
        return Kind(f"one of {', '.join(map(str, values))}")
    if "const" in schema:
        return Kind(str(schema["const"]))
    kind = schema.get("type", "any")
    if kind == "array":
        inner = kind_of(schema.get("items", {}))
        return Kind(f"list of {inner.words}", inner.schema)
    if kind == "object" and isinstance(schema.get("additionalProperties"), Mapping):
        inner = kind_of(schema["additionalProperties"])
        return Kind(f"object of {inner.words}", inner.schema)
    return Kind(_WORDS.get(str(schema.get("format")), str(kind)))


def _schemas(document: Json, operations: list[Operation]) -> dict[str, list[Field]]:
    """The fields of all objects that the operations lead to, by the names of the objects."""
    schemas = document["components"]["schemas"]
    kinds = [kind for operation in operations for kind in (operation.body, *(a.kind for a in operation.answers))]
    waiting = sorted({kind.schema for kind in kinds if kind and kind.schema})
    found: dict[str, list[Field]] = {}
    while waiting:
        name = waiting.pop(0)
        if name not in found and name in schemas:
            found[name] = list(_fields(schemas[name]))
            waiting += [field.kind.schema for field in found[name] if field.kind.schema]
    return found


def _fields(schema: Json) -> Iterator[Field]:
    required = set(schema.get("required", ()))
    for name, found in schema.get("properties", {}).items():
        yield Field(name, kind_of(found), name in required, found.get("description", ""))


def _shown(name: str) -> str:
    """`OffsetPagination_gasket.keys.schemas.KeyOut_` is a page of `KeyOut`."""
    outer, separator, inner = name.partition("_")
    return f"page of {inner.rstrip('_').rpartition('.')[2]}" if separator and outer == "OffsetPagination" else name
