"""A configuration as `init` writes it, and a way to walk the checklist over it."""

from __future__ import annotations

import copy
import shutil
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from agentao_gov.checklist.facts import Facts, gather
from agentao_gov.checklist.items import ItemId, select
from agentao_gov.checklist.probe import ProbedService
from agentao_gov.checklist.report import ChecklistReport
from agentao_gov.checklist.runner import walk
from agentao_gov.config import load_deployment
from agentao_gov.resources import shipped

Tables = dict[str, Any]

DEPLOYMENT: Tables = {
    "tenants": {"default": {"max_sessions": 50, "max_sessions_per_user": 5, "daily_tokens": 2_000_000}},
    "budget": {"tenant_daily_tokens": 5_000_000, "user_daily_tokens": 1_000_000, "session_daily_tokens": 300_000},
    "capacity": {"sessions": 500, "mcp_processes": 30, "memory": "1GiB"},
}


class House:
    """A directory with a deployment file and the shipped profiles; change the tables, then ask."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.deployment = copy.deepcopy(DEPLOYMENT)
        self.profiles: dict[str, Tables] = {}

    @property
    def config(self) -> Path:
        return self.root / "agentao-gov.toml"

    def profile(self, name: str) -> Tables:
        """The tables of a shipped profile, to be changed."""
        if name not in self.profiles:
            self.profiles[name] = tomllib.loads((shipped("profiles") / f"{name}.toml").read_text())
        return self.profiles[name]

    def write(self) -> Path:
        """Writes all of it."""
        folder = self.root / "profiles"
        if not folder.exists():
            shutil.copytree(shipped("profiles"), folder)
        for name, tables in self.profiles.items():
            (folder / f"{name}.toml").write_text(tomli_w.dumps(tables))
        self.config.write_text(tomli_w.dumps(self.deployment))
        return self.config

    def facts(self, profile: str = "qa", *, memory_bytes: int = 16 * 2**30) -> Facts:
        """What the static checks look at, on a machine of this size."""
        facts, _ = gather(load_deployment(self.write()), str(self.root / "profiles" / f"{profile}.toml"))
        return replace(facts, memory_bytes=memory_bytes)

    def walk(
        self,
        *only: ItemId,
        profile: str = "qa",
        service: Callable[..., ProbedService] = ProbedService,
        settle_s: float = 20.0,
    ) -> ChecklistReport:
        """Walks the named items, or all."""
        facts, probed = gather(load_deployment(self.write()), str(self.root / "profiles" / f"{profile}.toml"))
        return walk(facts, probed, select(only), config=str(self.config), open_service=service, settle_s=settle_s)

    def mend(self, remedy: str | None) -> None:
        """Pastes a remedy into the file it names, as a person would."""
        assert remedy
        for part in remedy.split("\n\n# "):
            title = part.lstrip("# ").split("\n", 1)[0]
            tables = tomllib.loads(part if part.startswith("#") else f"# {part}")
            name = title.split(".toml")[0]
            merge(self.deployment if name == "agentao-gov" else self.profile(name), tables)


def merge(into: Tables, tables: Mapping[str, Any]) -> None:
    """Puts tables into tables."""
    for key, value in tables.items():
        if isinstance(value, dict):
            merge(into.setdefault(key, {}), value)
        else:
            into[key] = value


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)
