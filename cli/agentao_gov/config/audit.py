"""Everything `config check` looks at: the deployment file, its tenants' profiles, the profiles it offers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from agentao_gov.config.findings import Finding
from agentao_gov.config.load_deployment import inspect_deployment
from agentao_gov.config.load_profile import inspect_profile, profile_paths
from agentao_gov.config.resolved import ResolvedDeployment
from agentao_gov.config.toml_text import key_line
from agentao_gov.errors import ConfigError

__all__ = ["audit_deployment"]


def audit_deployment(path: Path | None, *, check_threshold: Callable[[str], object]) -> list[Finding]:
    """All findings. Raises ConfigError where there is nothing to read.

    `check_threshold` raises ConfigError for a load-test threshold that cannot be read; it stands a floor above.
    """
    deployment, found = inspect_deployment(path)
    findings = list(found)
    if deployment is None:
        return findings
    text = deployment.path.read_text("utf-8") if deployment.path else ""
    known = profile_paths(deployment)
    for name, tenant in deployment.deployment.tenants.items():
        for profile in tenant.profiles or ():
            if profile not in known:
                key = f"tenants.{name}.profiles"
                message = f"there is no profile {profile!r}; there are: {', '.join(sorted(known))}"
                findings.append(Finding("error", key, message, deployment.path, key_line(text, key)))
    for level, key, message in _unusable(deployment, check_threshold):
        findings.append(Finding(level, key, message, deployment.path, key_line(text, key)))
    for file in known.values():
        findings += inspect_profile(file, deployment=deployment)[1]
    return findings


def _unusable(
    deployment: ResolvedDeployment, check_threshold: Callable[[str], object]
) -> Iterator[tuple[Literal["error", "warning"], str, str]]:
    """What only a later command would stumble over."""
    for expression in deployment.deployment.loadtest.thresholds:
        try:
            check_threshold(expression)
        except ConfigError as error:
            yield "error", "loadtest.thresholds", error.message.rstrip(".")
    if "profiles.dir" in deployment.sources and deployment.sources["profiles.dir"] != "default":
        directory = deployment.profiles_dir
        if not directory.is_dir():
            yield "warning", "profiles.dir", f"there is no directory {str(directory)!r}: the shipped profiles are used"
