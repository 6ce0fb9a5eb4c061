"""What a revision's module declares of background work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from gasket.migrator.background import Backfill, Declaration, IndexBuild
from gasket.migrator.errors import RevisionFileError


def declared_works(module: ModuleType) -> Sequence[Declaration]:
    """The revision's `background`; empty where it has none.

    Raises:
        RevisionFileError: it is something else than a list of Backfill and IndexBuild.
    """
    declared = getattr(module, "background", ())
    if isinstance(declared, list | tuple) and all(isinstance(one, Backfill | IndexBuild) for one in declared):
        return declared
    raise RevisionFileError(
        file=Path(module.__file__ or module.__name__).name,
        problem="declares a `background` that is not a list of Backfill and IndexBuild",
    )


def needed_revisions(module: ModuleType) -> Sequence[str]:
    """Those whose work has to be complete before the revision is applied: its `needs_background`."""
    return getattr(module, "needs_background", ())
