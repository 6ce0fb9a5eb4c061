"""deploy/compose.yaml against deploy/nginx.conf, the settings and the image."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from gasket.settings import read_settings

REPOSITORY = Path(__file__).parents[2]
DEPLOY = REPOSITORY / "deploy"


def test_the_composition_fits_together() -> None:
    document = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    services, nginx = document["services"], (DEPLOY / "nginx.conf").read_text()
    servers = re.findall(r"server ([\w-]+):(\d+) resolve", nginx)
    image = (REPOSITORY / "Containerfile").read_text()
    assert servers == [(name, "8000") for name, service in services.items() if service["image"] == "gasket"]
    assert "LITESTAR_PORT=8000" in image
    assert services["nginx"]["ports"] == ["127.0.0.1:8080:8080"]
    assert "listen 8080;" in nginx
    settings = read_settings({})
    assert f"client_max_body_size {settings.max_body_size // 2**20}m;" in nginx
    assert re.findall(r"keepalive_timeout (\d+)s", nginx)[0] < str(settings.keep_alive)
    for name, _ in servers:
        service = services[name]
        secrets = {value for key, value in service["environment"].items() if key.endswith("_FILE")}
        assert secrets == {f"/run/secrets/{secret}" for secret in service["secrets"]}
        assert set(service["secrets"]) <= document["secrets"].keys()
        assert int(service["stop_grace_period"].removesuffix("s")) >= settings.drain_delay + settings.drain_timeout + 10
        command, *program, script = service["healthcheck"]["test"]
        assert (command, program) == ("CMD", ["python", "-IS", "-c"])
        compile(script, "healthcheck", "exec")
        assert "'/health/ready'" in script
        plain = {key: value for key, value in service["environment"].items() if not key.endswith("_FILE")}
        assert read_settings(plain).trusted_proxies
