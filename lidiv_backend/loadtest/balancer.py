"""nginx with the balancer's configuration of the compose and Kubernetes files, on this machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from lidiv_backend.demo.services import Service
from lidiv_backend.errors import LidivError

#: Where the configuration lies in a checkout.
TEMPLATE = Path(__file__).parents[2] / "deploy/kubernetes/overlays/replicas/balancer.conf.template"
# Since this version nginx follows names whose addresses change; earlier ones do not know the words.
_RESOLVES_SINCE = (1, 27, 3)


class BalancerError(LidivError):
    """nginx or its configuration is missing."""

    kind = "balancer"


def nginx_program() -> str | None:
    """Find nginx; Debian has it where the path of ordinary users does not lead."""
    return shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def balancer(folder: Path, *, port: int, backends: tuple[str, str], proxies: int = 1) -> Service:
    """Describe an nginx in front of two replicas.

    Parameters
    ----------
    folder
        For its configuration, its log and what it buffers.
    port
        Where it listens, on the loopback address.
    backends
        ``host:port`` of each replica.
    proxies
        How many there are, this one included.

    Returns
    -------
    Service
        Ready once a replica answers through it.

    Raises
    ------
    BalancerError
        If nginx is not installed, or the configuration is not there.
    """
    program = nginx_program()
    if program is None:
        raise BalancerError("nginx is not installed.", remedy="apt-get install nginx-light")
    if not TEMPLATE.is_file():
        raise BalancerError(
            "The balancer's configuration lies in `deploy/`, which is not here.",
            remedy="Run it from a checkout of the repository.",
        )
    folder.mkdir(parents=True, exist_ok=True)
    buffers = "\n".join(
        f"    {kind}_temp_path {folder / kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    server = rendered(
        TEMPLATE.read_text(),
        port=port,
        backends=backends,
        proxies=proxies,
        version=_version(program),
    )
    (folder / "server.conf").write_text(server)
    (folder / "nginx.conf").write_text(
        f"""{"user root;" if os.geteuid() == 0 else ""}
daemon off;
worker_processes 1;
pid {folder / "pid"};
error_log {folder / "error.log"} warn;
events {{ worker_connections 1024; }}
http {{
{buffers}
    include {folder / "server.conf"};
}}
"""
    )
    return Service(
        name="nginx",
        command=(
            *(program, "-p", str(folder), "-e", str(folder / "error.log")),
            *("-c", str(folder / "nginx.conf")),
        ),
        environment=dict(os.environ),
        log_path=folder / "nginx.log",
        ready_url=f"http://127.0.0.1:{port}/health",
    )


def rendered(
    template: str,
    *,
    port: int,
    backends: tuple[str, str],
    proxies: int = 1,
    version: tuple[int, ...],
) -> str:
    """Fill in the template as nginx's own image does, for this machine.

    Parameters
    ----------
    template
        The configuration.
    port
        Where to listen, on the loopback address.
    backends
        ``host:port`` of each replica.
    proxies
        How many there are, this one included.
    version
        Of nginx. Versions that cannot follow changing names get addresses that do not change.
    """
    text = template.replace("listen 8080;", f"listen 127.0.0.1:{port};")
    for number, backend in enumerate(backends, start=1):
        text = text.replace(f"${{BACKEND_{number}}}", backend)
    text = text.replace("${LIDIV_PROXIES}", str(proxies))
    if version < _RESOLVES_SINCE:
        text = text.replace(" resolve;", ";")
    # The replicas are given as addresses; nobody is asked for names.
    return re.sub(r"^resolver .*;$", "", text, flags=re.MULTILINE)


def _version(program: str) -> tuple[int, ...]:
    told = subprocess.run(  # noqa: S603 - nginx, asked for its version
        [program, "-v"], capture_output=True, text=True, check=True
    )
    found = re.search(r"nginx/([\d.]+)", told.stderr)
    return tuple(int(part) for part in found[1].split(".")) if found else (0,)
