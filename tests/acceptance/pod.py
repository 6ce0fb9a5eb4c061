"""What a Deployment says, as a process: its command, environment, user, files and read-only root, without a cluster.

As root on Linux the process gets a mount namespace in which everything that is on a disk is read-only. Elsewhere it
runs as the user of the tests, on the file system as it is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.acceptance.installation import REPOSITORY

SECRETS = "/run/secrets/gasket"
_NAMESPACE = Path(__file__).with_name("pod.sh")


def can_isolate() -> bool:
    """Whether this machine lets the tests make a mount namespace."""
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("setpriv"):
        return False
    probe = ["unshare", "--mount", "sh", "-c", "mount --make-rprivate / && mount -t tmpfs tmpfs /run"]
    return subprocess.run(probe, capture_output=True, timeout=30).returncode == 0


def start(
    deployment: Mapping[str, Any], *, image: Mapping[str, str], secrets: Mapping[str, str], port: int, log: Path
) -> tuple[list[str], subprocess.Popen[bytes]]:
    """Start the Deployment's container on this port of 127.0.0.1; returns what was started and the process.

    `image` has the variables of the Containerfile, `secrets` the content of the mounted files by name.
    """
    spec = deployment["spec"]["template"]["spec"]
    [container] = spec["containers"]
    isolated = can_isolate()
    files = log.with_suffix(".secrets")
    files.mkdir()
    for name, content in secrets.items():
        (files / name).write_text(content)
    here = {"8000": str(port), "0.0.0.0": "127.0.0.1"}
    command = [here.get(word, word) for word in container["command"]]
    own = {entry["name"]: entry["value"] for entry in container["env"]}
    if not isolated:
        own = {name: value.replace(SECRETS, str(files)) for name, value in own.items()}
    variables = {**image, **own}
    # The image has its programs and Alembic's ini elsewhere.
    variables |= {
        "PATH": f"{Path(sys.executable).parent}:{os.defpath}",
        "ALEMBIC_CONFIG": str(REPOSITORY / "alembic.ini"),
    }
    if isolated:
        context = spec["securityContext"]
        variables |= {"TMPDIR": "/run/tmp", "HOME": "/nonexistent"}
        variables |= {"ACCOUNT": str(context["runAsUser"]), "GROUP": str(context["runAsGroup"]), "FILES": str(files)}
        variables |= _beyond_closed_folders()
        command = ["unshare", "--mount", "bash", str(_NAMESPACE), *command]
    with log.open("ab") as output:
        return command, subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=variables,
            cwd="/" if isolated else log.parent,
            start_new_session=True,
        )


def _beyond_closed_folders() -> dict[str, str]:
    """Which of the folders that the program needs are below folders that only root may pass, and those folders."""
    needed = {Path(sys.prefix), Path(sys.base_prefix).resolve(), REPOSITORY}
    closed = {path: folder for path in needed if (folder := _first_closed(path.parents))}
    return {"NEEDED": " ".join(map(str, closed)), "CLOSED": " ".join({str(folder) for folder in closed.values()})}


def _first_closed(parents: Sequence[Path]) -> Path | None:
    return next((folder for folder in reversed(parents) if not folder.stat().st_mode & 0o001), None)
