"""What a command that a model wrote may see and touch: its session's directory, and the system's programs.

Two layers can hold it, and the stronger one that works here is used: bubblewrap (namespaces), else Landlock with a
seccomp filter (`sandbox_program`). Which of them works is found out by running a command in each, because a container
may forbid what the kernel knows.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agentao_gov.errors import ConfigError
from agentao_gov.process.sandbox_program import landlock_abi, program

SandboxLayer = Literal["bubblewrap", "landlock"]

#: Programs and libraries. Not `/opt`, `/srv`, `/home`: services are installed there, with their secrets.
_PROGRAMS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/gnu/store")
#: What programs look up, and what holds no secrets.
_ETC = (
    *("alternatives", "bash.bashrc", "ca-certificates", "ca-certificates.conf", "crypto-policies", "debian_version"),
    *("fonts", "group", "host.conf", "hostname", "hosts", "inputrc", "ld.so.cache", "ld.so.conf", "ld.so.conf.d"),
    *("locale.alias", "locale.conf", "localtime", "lsb-release", "magic", "magic.mime", "mime.types"),
    *("nsswitch.conf", "os-release", "passwd", "pki/ca-trust", "pki/tls/cert.pem", "pki/tls/certs", "protocols"),
    *("redhat-release", "resolv.conf", "services", "shells", "ssl/cert.pem", "ssl/certs", "ssl/openssl.cnf"),
    *("terminfo", "timezone"),
)
#: Where there is no namespace of processes, `/proc` holds every process's command line: these files alone.
_PROC = (
    *("cpuinfo", "filesystems", "loadavg", "meminfo", "stat", "uptime", "version"),
    *("sys/kernel/osrelease", "sys/kernel/ostype", "sys/kernel/pid_max", "sys/kernel/random", "sys/vm"),
)
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
#: What a command finds of the service's environment. Everything else stays behind.
_KEPT = ("PATH", "LANG", "LANGUAGE", "TZ", "TERM", "SSL_CERT_FILE", "SSL_CERT_DIR")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
#: Of the private `/tmp`, which is memory.
_SCRATCH_BYTES = 512 << 20
#: Largest file a command may write.
_FILE_BYTES_MAX = 1 << 30
_PROBE_S_MAX = 10.0


@dataclass(frozen=True, slots=True)
class SandboxLayers:
    """What this machine has: bubblewrap's program where namespaces work, Landlock's version where it works."""

    bubblewrap: str | None = None
    landlock: int = 0

    @property
    def best(self) -> SandboxLayer | None:
        """The layer to use; None where there is no sandbox to be had."""
        if self.bubblewrap is not None:
            return "bubblewrap"
        return "landlock" if self.landlock else None


@dataclass(frozen=True, slots=True)
class Sandbox:
    """The sandbox of one session's commands."""

    layers: SandboxLayers
    #: The session's directory, links resolved: the one place to write to.
    root: Path
    network: bool = False
    #: Further paths to read, for a server that the operator configured.
    read: tuple[str, ...] = ()

    def command(self, argv: Sequence[str], cwd: Path | None = None) -> list[str]:
        """The command line that runs `argv` in the sandbox, in `cwd` (default: the session's directory)."""
        assert self.layers.best is not None
        etc = tuple(f"/etc/{name}" for name in _ETC)
        proc = tuple(f"/proc/{name}" for name in _PROC) if self.layers.best == "landlock" else ()
        plan: dict[str, object] = {
            "layer": self.layers.best,
            "bubblewrap": self.layers.bubblewrap,
            "root": str(self.root),
            "cwd": str(cwd or self.root),
            "network": self.network,
            "read": [*_PROGRAMS, *etc, *proc, *_outermost(self.read)],
            "devices": list(_DEVICES),
            "scratch": str(self._scratch),
            "scratch_bytes": _SCRATCH_BYTES,
            "rlimits": {"RLIMIT_CORE": 0, "RLIMIT_FSIZE": _FILE_BYTES_MAX},
        }
        return program(plan, list(argv))

    def environment(self, extra: Mapping[str, str]) -> dict[str, str]:
        """What the command is started with: what programs need to run and `extra`, nothing else of the service's."""
        kept = {name: value for name, value in os.environ.items() if name in _KEPT or name.startswith("LC_")}
        if self.network:
            proxies = {*_PROXIES, *map(str.lower, _PROXIES)}
            kept |= {name: value for name, value in os.environ.items() if name in proxies and "@" not in value}
        # A program that may not be run hides the one after it.
        readable = tuple(f"{path}/" for path in (*_PROGRAMS, *self.read))
        path = [part for part in kept.get("PATH", "").split(":") if f"{part}/".startswith(readable)]
        kept["PATH"] = ":".join(path) or "/usr/local/bin:/usr/bin:/bin"
        return {**kept, **self.places, "SHELL": "/bin/sh", **extra}

    @property
    def supervised(self) -> bool:
        """Whether SIGTERM to the command's process ends all that the command started, whatever that did since."""
        return self.layers.best == "landlock"

    @property
    def places(self) -> dict[str, str]:
        """Where the command finds a home and a place for temporary files."""
        place = "/tmp" if self.layers.best == "bubblewrap" else str(self._scratch)  # noqa: S108
        return {"HOME": place, "TMPDIR": place}

    @property
    def _scratch(self) -> Path:
        """Where temporary files go without a private `/tmp`."""
        return self.root / ".agentao" / "tmp"


def _outermost(paths: Sequence[str]) -> list[str]:
    """The paths that are below none of the others, nor below the system's programs."""
    found: list[str] = list(_PROGRAMS)
    for path in sorted(paths):
        if not path.startswith(tuple(f"{one}/" for one in found)):
            found.append(path)
    return found[len(_PROGRAMS) :]


@functools.lru_cache(maxsize=1)
def find_layers() -> SandboxLayers:
    """Runs a command in each layer; takes some 0.1 s, once in a process."""
    bubblewrap, abi = shutil.which("bwrap"), landlock_abi()
    return SandboxLayers(
        bubblewrap if bubblewrap is not None and _works(SandboxLayers(bubblewrap=bubblewrap)) else None,
        abi if abi and _works(SandboxLayers(landlock=abi)) else 0,
    )


def _works(layers: SandboxLayers) -> bool:
    with tempfile.TemporaryDirectory(prefix="agentao-gov-sandbox-") as directory:
        root = Path(directory).resolve()
        sandbox = Sandbox(layers, root)
        try:
            done = subprocess.run(  # noqa: S603
                sandbox.command(["/bin/sh", "-c", "echo here > made"]),
                env=sandbox.environment({}),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_PROBE_S_MAX,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
        return done.returncode == 0 and (root / "made").exists()


def require_sandbox(who: str, layers: SandboxLayers) -> None:
    """Raises ConfigError where `layers` hold nothing; `who` says who asks for a sandbox."""
    if layers.best is None:
        raise ConfigError(
            f"{who}, and neither bubblewrap nor Landlock works here.",
            hint="`agentao-gov doctor` says what is missing.",
        )
