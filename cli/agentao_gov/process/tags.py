"""The mark every child process carries in its environment, so that none can be lost.

`AGENTAO_GOV_TAG=<boot>-<pid namespace>-<owner pid>-<owner start>-<session>`. The owner is the process that hosts the
pool. Descent alone loses a daemon (it is reparented); the environment is inherited, so the tag finds it again: when
its session closes (`tree`), and when the owner died and the next start sweeps (`sweep`).
The MCP SDK passes on only a handful of variables, so the tag must be put into each server's own `env`.
"""

from __future__ import annotations

import functools
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agentao_gov.process import procfs
from agentao_gov.process.procfs import ProcessRef

__all__ = ["KIND_VARIABLE", "TAG_VARIABLE", "Kind", "Owner", "Tag", "child_env", "session_tag", "shared_tag"]

TAG_VARIABLE = "AGENTAO_GOV_TAG"
#: What kind of child this is, for the census: inherited by helpers, which are thereby counted with their server.
KIND_VARIABLE = "AGENTAO_GOV_KIND"

Kind = Literal["mcp", "shell", "session", "other"]


@functools.cache
def _boot() -> str:
    """Tells this boot from the last: pids and starts begin anew, tags left in a checkpoint must not match."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")[:12]


def _pid_namespace() -> str:
    """A pid only means something in its namespace: a sweep must not judge tags written in another one."""
    return str(Path("/proc/self/ns/pid").readlink()).strip("pid:[]")


@dataclass(frozen=True, slots=True)
class Owner:
    """The process that owns children: while it lives they are its business, afterwards anyone's."""

    boot: str
    pid_namespace: str
    ref: ProcessRef

    @classmethod
    def me(cls) -> Owner:
        """This process."""
        stat = procfs.read_stat(os.getpid())
        assert stat is not None
        return cls(_boot(), _pid_namespace(), stat.ref)

    @property
    def here(self) -> bool:
        """Whether this process can judge the owner at all: same boot, same pid namespace."""
        return self.boot == _boot() and self.pid_namespace == _pid_namespace()

    @property
    def alive(self) -> bool:
        """Whether the owner still runs. Meaningful only where `here`."""
        return procfs.alive(self.ref)


@dataclass(frozen=True, slots=True)
class Tag:
    """A parsed tag. `session` is a hash: the environment of a process is no place for a tenant's name."""

    owner: Owner
    session: str

    def __str__(self) -> str:
        o = self.owner
        return f"{o.boot}-{o.pid_namespace}-{o.ref.pid}-{o.ref.start}-{self.session}"

    @classmethod
    def parse(cls, text: str) -> Tag | None:
        """The tag, or None where the text is not one: any process may set the variable to anything."""
        parts = text.split("-")
        if len(parts) != 5 or not (parts[2].isdigit() and parts[3].isdigit()):
            return None
        return cls(Owner(parts[0], parts[1], ProcessRef(int(parts[2]), int(parts[3]))), parts[4])

    @classmethod
    def of(cls, pid: int) -> Tag | None:
        """The tag a process was started with, if any."""
        text = procfs.environ_value(pid, TAG_VARIABLE.encode())
        return None if text is None else cls.parse(text)


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def session_tag(tenant: str, session: str) -> Tag:
    """The tag of one session's children, owned by this process."""
    return Tag(Owner.me(), _hash("session", tenant, session))


def shared_tag(share: Literal["process", "tenant"], tenant: str = "") -> Tag:
    """The tag of children that several sessions share: they live until the owner closes, not a session."""
    return Tag(Owner.me(), _hash("shared", share, tenant))


def child_env(tag: Tag | str, kind: Kind | None = None) -> dict[str, str]:
    """The entries to add to the environment of a child. `kind` None leaves it to whoever starts the child."""
    env = {TAG_VARIABLE: str(tag)}
    if kind is not None:
        env[KIND_VARIABLE] = kind
    return env
