"""Writes what `init`, `profile new` and `tenant new` write; nothing that exists is overwritten."""

from __future__ import annotations

import hashlib
import re
import secrets
from pathlib import Path

import tomlkit

from agentao_gov.config.deployment import TENANT_NAME_RULE, is_tenant_name
from agentao_gov.config.edit import edit_deployment, write_new
from agentao_gov.config.load_deployment import FILE_NAME, load_deployment
from agentao_gov.config.load_profile import load_profile
from agentao_gov.errors import ConfigError, UsageError
from agentao_gov.resources import shipped

__all__ = ["add_tenant_key", "new_profile", "write_starter"]

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
#: 256 bits: nobody guesses it, so a plain SHA-256 of it is as good as a slow hash.
_KEY_BYTES = 32


def write_starter(directory: Path) -> tuple[list[Path], list[Path]]:
    """Writes `agentao-gov.toml` and `profiles/`; returns what was written and what was there already."""
    wanted = {directory / FILE_NAME: (Path(__file__).parent / "agentao-gov.template.toml").read_text("utf-8")}
    for source in sorted(shipped("profiles").glob("*.toml")):
        wanted[directory / "profiles" / source.name] = source.read_text("utf-8")
    written: list[Path] = []
    try:
        for path, text in wanted.items():
            if write_new(path, text):
                written.append(path)
    except OSError as error:
        raise ConfigError(
            f"{str(error.filename or directory)!r} cannot be written: {error.strerror}.",
            hint="Name a directory that can: `agentao-gov init DIR`.",
        ) from None
    return written, [path for path in wanted if path not in written]


def new_profile(name: str, source: str, config: Path | None) -> Path:
    """Copies a profile, comments included, under a new name into the deployment's profile directory."""
    if not _NAME.match(name):
        raise UsageError(f"{name!r} cannot be a profile's name: use letters, digits, '.', '_' and '-'.")
    deployment = load_deployment(config)
    resolved = load_profile(source, deployment=deployment, environ={})
    assert resolved.path is not None, "a loaded profile has a file"
    document = tomlkit.parse(resolved.path.read_text("utf-8"))
    document["name"] = name
    target = deployment.profiles_dir / f"{name}.toml"
    try:
        done = write_new(target, tomlkit.dumps(document))
    except OSError as error:
        raise ConfigError(f"{str(target)!r} cannot be written: {error.strerror}.") from None
    if not done:
        raise UsageError(f"{str(target)!r} exists already and is left as it is.", hint="Choose another name.")
    return target


def add_tenant_key(path: Path, tenant: str) -> tuple[str, str]:
    """Makes an API key for a tenant, listing the tenant where it is new; returns the key and its hash.

    Only the hash is written. A new tenant starts with the caps of `[tenants.default]`: what is listed no longer
    gets that table's, and a tenant without caps is unlimited.
    """
    if tenant == "default":
        raise UsageError(
            "'default' stands for every tenant that is not listed, and gets no key.", hint="Name a tenant of your own."
        )
    if not is_tenant_name(tenant):
        raise UsageError(f"{tenant!r} cannot be a tenant's name: {TENANT_NAME_RULE}.")
    key = "agk_" + secrets.token_urlsafe(_KEY_BYTES)
    digest = hashlib.sha256(key.encode()).hexdigest()

    def change(document: tomlkit.TOMLDocument) -> None:
        if "tenants" not in document:
            document.add("tenants", tomlkit.table(is_super_table=True))
        tenants = document["tenants"]
        if tenant not in tenants:
            entry = tomlkit.table()
            entry.add("api_key_sha256", tomlkit.array().multiline(True))
            for name, value in tenants.get("default", {}).items():
                if name != "api_key_sha256":
                    entry.add(name, getattr(value, "unwrap", lambda value=value: value)())
            entry.add(tomlkit.nl())
            tenants[tenant] = entry
        entry = tenants[tenant]
        if "api_key_sha256" not in entry:
            entry["api_key_sha256"] = tomlkit.array()
        entry["api_key_sha256"].append(digest)

    edit_deployment(path, change)
    return key, digest
