"""Profiles and the deployment file: models, discovery, merging with provenance."""

from agentao_gov.config.deployment import (
    Budget,
    Capacity,
    Deployment,
    LoadTest,
    Pool,
    ProfilesDir,
    Server,
    Shutdown,
    State,
    Tenant,
)
from agentao_gov.config.findings import Finding, raise_errors
from agentao_gov.config.layers import Overrides
from agentao_gov.config.load_deployment import find_deployment, inspect_deployment, is_loopback, load_deployment
from agentao_gov.config.load_profile import inspect_profile, load_profile, profile_paths
from agentao_gov.config.model import ModelChoice, ModelFlags, fit_to_model, resolve_model
from agentao_gov.config.profile import (
    Limits,
    Mcp,
    McpServer,
    ModelSettings,
    OnLimit,
    Profile,
    Tools,
)
from agentao_gov.config.resolved import ResolvedDeployment, ResolvedProfile
from agentao_gov.config.units import format_bytes, format_duration, parse_bytes, parse_duration_s, parse_tokens

__all__ = [
    "Budget",
    "Capacity",
    "Deployment",
    "Finding",
    "Limits",
    "LoadTest",
    "Mcp",
    "McpServer",
    "ModelChoice",
    "ModelFlags",
    "ModelSettings",
    "OnLimit",
    "Overrides",
    "Pool",
    "Profile",
    "ProfilesDir",
    "ResolvedDeployment",
    "ResolvedProfile",
    "Server",
    "Shutdown",
    "State",
    "Tenant",
    "Tools",
    "find_deployment",
    "fit_to_model",
    "format_bytes",
    "format_duration",
    "inspect_deployment",
    "inspect_profile",
    "is_loopback",
    "load_deployment",
    "load_profile",
    "parse_bytes",
    "parse_duration_s",
    "parse_tokens",
    "profile_paths",
    "raise_errors",
    "resolve_model",
]
