"""Hatchling's build hook: puts the commit that a package is built from into the package, for `gasket.release`."""

from __future__ import annotations

import runpy
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CommitHook(BuildHookInterface[Any]):
    """Adds the file `commit`. An editable installation gets none: it asks its clone, whose commit changes."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it builds a source distribution or a wheel."""
        package = Path(self.root, "src", "gasket")
        release = runpy.run_path(str(package / "release.py"))
        commit_file = release["COMMIT_FILE"]
        if version == "editable" or (package / commit_file).exists():  # it is there in a source distribution
            return
        if commit := release["commit_of"](Path(self.root)):
            self._folder = tempfile.TemporaryDirectory()
            source = Path(self._folder.name, commit_file)
            source.write_text(f"{commit}\n", encoding="utf-8")
            inside = "src/gasket" if self.target_name == "sdist" else "gasket"
            build_data["force_include"][str(source)] = f"{inside}/{commit_file}"
