"""Two catalogs compared, object by object, and the result in words. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import zip_longest

import msgspec

from gasket.migrator.catalog.read import Catalog, Object

MADE_AT_RUN_TIME = frozenset({"partition", "inheriting table"})
_TABLES = frozenset({"table", "view", "materialized view", "foreign table"}) | MADE_AT_RUN_TIME
_PARTS = frozenset(
    {"column", "comment", "constraint", "foreign options", "index", "policy", "privileges", "rule", "statistics"}
)
_PARTS |= {"trigger", "tuning"}
_SHOWN = (_PARTS | {"default privileges"}) - {"foreign options", "statistics"}
_ONE_LINE = 200


class Entry(msgspec.Struct, frozen=True):
    """One object: its definition on the live database and as it is expected. `owner` is what it belongs to, if any."""

    kind: str
    name: str
    live: str | None
    expected: str | None
    owner: str | None = None


class Difference(msgspec.Struct, frozen=True):
    """The live database against what is expected of it.

    Extra are objects of other applications and rights of other roles too. `notes` say what could not be compared.
    """

    missing: tuple[Entry, ...]
    extra: tuple[Entry, ...]
    different: tuple[Entry, ...]
    notes: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether the live database has everything that is expected, as it is expected."""
        return not (self.missing or self.different)

    def lines(self) -> list[str]:
        """For a reader. A whole table that is missing or extra is one line."""
        return [
            *(f"missing    {entry.kind} {entry.name}" + _in_words(entry) for entry in wholes(self.missing)),
            *(f"different  {describe_change(entry, 'the revisions make it')}" for entry in wholes(self.different)),
            *(f"extra      {entry.kind} {entry.name}" + _in_words(entry) for entry in wholes(self.extra)),
            *(f"note       {note}" for note in self.notes),
        ]


def compare_catalogs(
    live: Catalog,
    expected: Catalog,
    *,
    schemas: Collection[str],
    taken_away: Iterable[tuple[str, str]] = (),
    notes: tuple[str, ...] = (),
) -> Difference:
    """Look for everything `expected` on live, and in `schemas` for what is there beyond.

    What is `taken_away` must not be there. Partitions beyond are not looked for: they are made at run time.
    """
    names = {name for _kind, name in expected}
    beyond = {
        key: found
        for key, found in live.items()
        if key not in expected and (found.schema in schemas or found.owner in names)
    }
    entries = [_entry(key, live.get(key), object_) for key, object_ in expected.items()]
    entries += [_entry(key, found, None) for key, found in beyond.items() if not _made_at_run_time(key, found, live)]
    unequal = [part for entry in entries if entry.live != entry.expected for part in _parts(entry)]
    forbidden = [_entry(key, live[key], None) for key in taken_away if key in live and key not in expected]
    unequal.sort(key=lambda entry: (entry.kind not in _TABLES, entry.kind, entry.name))
    forbidden = [*(entry for entry in unequal if _is_for_everybody(entry) and entry.owner in names), *forbidden]
    return Difference(
        missing=tuple(entry for entry in unequal if entry.live is None),
        extra=tuple(entry for entry in unequal if entry.expected is None and entry not in forbidden),
        different=(
            *(entry for entry in unequal if entry.live is not None and entry.expected is not None),
            *forbidden,
        ),
        notes=notes,
    )


def wholes(entries: Collection[Entry]) -> list[Entry]:
    """Without what belongs to an object that is among the entries itself."""
    names = {entry.name for entry in entries if entry.kind not in _PARTS}
    return [entry for entry in entries if entry.owner not in names]


def describe_change(entry: Entry, expected: str) -> str:
    """`column public.t.c: is 'integer', ... 'bigint'`; of a long text the first line that differs."""
    subject = f"{entry.kind} {entry.name}"
    if entry.expected is None:
        return f"{subject}: is {entry.live!r}, {expected} nothing"
    assert entry.live is not None
    if max(len(entry.live), len(entry.expected)) <= _ONE_LINE and "\n" not in entry.live + entry.expected:
        return f"{subject}: is {entry.live!r}, {expected} {entry.expected!r}"
    for number, (live, wanted) in enumerate(zip_longest(entry.live.splitlines(), entry.expected.splitlines()), start=1):
        if live != wanted:
            return f"{subject}: line {number} is {_clipped(live)}, {expected} {_clipped(wanted)}"
    return f"{subject}: differs in its line ends"


def _entry(key: tuple[str, str], live: Object | None, expected: Object | None) -> Entry:
    [known, *_] = [object_ for object_ in (expected, live) if object_]
    return Entry(
        *key,
        live=live.definition if live else None,
        expected=expected.definition if expected else None,
        owner=known.owner,
    )


def _made_at_run_time(key: tuple[str, str], found: Object, live: Catalog) -> bool:
    names = {key[1], found.owner}
    return any((kind, name) in live for kind in MADE_AT_RUN_TIME for name in names if name)


def _parts(entry: Entry) -> Iterator[Entry]:
    """The entry; rights one by one, for more of them on live are no harm."""
    if entry.kind not in ("privileges", "default privileges"):
        yield entry
        return
    live, expected = (set(text.split(", ")) if text else set() for text in (entry.live, entry.expected))
    if lacking := ", ".join(sorted(expected - live)):
        yield Entry(entry.kind, entry.name, None, lacking, entry.owner)
    if beyond := ", ".join(sorted(live - expected)):
        yield Entry(entry.kind, entry.name, beyond, None, entry.owner)


def _is_for_everybody(entry: Entry) -> bool:
    """A right beyond of PUBLIC: one that a revision took away is there by default where nobody does."""
    return entry.kind == "privileges" and entry.expected is None and entry.name.endswith(" to PUBLIC")


def _in_words(entry: Entry) -> str:
    """The definition, where it is one line that a reader can do something with."""
    definition = entry.live or entry.expected or ""
    return f": {definition}" if entry.kind in _SHOWN and definition and "\n" not in definition else ""


def _clipped(line: str | None) -> str:
    if line is None:
        return "not there"
    line = line.strip()
    return repr(line if len(line) <= _ONE_LINE else f"{line[:_ONE_LINE]} ...")
