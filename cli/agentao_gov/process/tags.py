"""The mark every child process carries in its environment, so that none can be lost.

`AGENTAO_GOV_TAG=<boot>-<pid namespace>-<owner pid>-<owner start>-<session>`. The owner is the process that hosts the
pool. Descent alone loses a daemon (it is reparented); the environment is inherited, so the tag finds it again: when
its session closes (`tree`), and when the owner died and the next start sweeps (`sweep`).
The MCP SDK passes on only a handful of variables, so the tag must be put into each server's own `env`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from agentao_gov.process import procfs
from agentao_gov.process.owner import Owner

TAG_VARIABLE = "AGENTAO_GOV_TAG"
#: What kind of child this is, for the census: inherited by helpers, which are thereby counted with their server.
KIND_VARIABLE = "AGENTAO_GOV_KIND"

Kind = Literal["mcp", "shell", "session", "other"]


@dataclass(frozen=True, slots=True)
class Tag:
    """A parsed tag. `session` is a hash: the environment of a process is no place for a tenant's name."""

    owner: Owner
    session: str

    def __str__(self) -> str:
        o = self.owner
        return f"{o.boot}-{o.pid_namespace}-{o.pid}-{o.started}-{self.session}"

    @classmethod
    def parse(cls, text: str) -> Tag | None:
        """The tag, or None where the text is not one: any process may set the variable to anything."""
        parts = text.rsplit("-", 4)  # a boot's name has hyphens itself
        if len(parts) != 5 or not (parts[2].isdigit() and parts[3].isdigit()):
            return None
        boot, namespace, pid, started, session = parts
        return cls(Owner("", int(pid), int(started), boot, namespace), session)

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
