"""Changes a TOML file a person wrote: comments stay, the result is checked, and no half-written file is ever seen."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tomlkit
import tomlkit.exceptions

from agentao_gov.config.deployment import TENANT_NAME_RULE, is_tenant_name
from agentao_gov.config.findings import raise_errors
from agentao_gov.config.layers import ENV_PREFIX
from agentao_gov.config.load_deployment import FILE_NAME, inspect_deployment, load_deployment
from agentao_gov.config.load_profile import load_profile
from agentao_gov.errors import ConfigError, UsageError
from agentao_gov.resources import shipped


def edit_deployment(path: Path, change: Callable[[tomlkit.TOMLDocument], None]) -> None:
    """Applies `change` to the deployment file, keeping comments and order.

    Raises ConfigError where the file is missing, wrong, or would be wrong afterwards; it is unchanged then.
    Safe against another process that edits at the same time.
    """
    target = path.resolve()
    try:
        with _locked(target.parent):
            # First as it is: `change` may rely on a file that is right.
            _check_deployment(target)
            document = tomlkit.parse(target.read_text(encoding="utf-8-sig"))
            change(document)
            write_whole(target, tomlkit.dumps(document), check=_check_deployment)
    except FileNotFoundError:
        hint = "`agentao-gov init` writes one."
        raise ConfigError(f"The deployment file {str(path)!r} does not exist.", hint=hint) from None
    except tomlkit.exceptions.ParseError as error:
        raise ConfigError(f"The deployment file {str(path)!r} is not valid TOML: {error}.") from None
    except OSError as error:
        raise ConfigError(f"The deployment file {str(path)!r} cannot be changed: {error.strerror}.") from None


def write_capacity(path: Path, values: Mapping[str, object]) -> None:
    """Puts a measured plan into `[capacity]`; keys it does not name, comments and every other table stay.

    Raises ConfigError like `edit_deployment`.
    """

    def change(document: tomlkit.TOMLDocument) -> None:
        if "capacity" not in document:
            document["capacity"] = tomlkit.table()
        table: Any = document["capacity"]
        for key, value in values.items():
            table[key] = value

    edit_deployment(path, change)


def _check_deployment(path: Path) -> None:
    # Without environment and overrides: it is the file that has to be right.
    _, findings = inspect_deployment(path, environ={})
    raise_errors(findings, what="The changed deployment")


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One editor at a time. The lock is on the directory, because the file itself is replaced."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def write_whole(path: Path, text: str, *, check: Callable[[Path], None] | None = None, new_mode: int = 0o600) -> None:
    """Replaces a file in one step, keeping its mode (`new_mode` for a new one); readers see the old or the new text.

    `check` sees the new file before it takes the old one's place, and may raise.
    """
    mode = path.stat().st_mode & 0o777 if path.exists() else new_mode
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".toml")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        if check is not None:
            check(Path(name))
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_new(path: Path, text: str) -> bool:
    """Writes a file that is not there yet; False, and nothing touched, where one is."""
    if path.exists() or path.is_symlink():
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            os.fchmod(file.fileno(), 0o644)
        # A hard link fails where the name exists: unlike a rename it can never overwrite.
        _link(name, path, text)
    except FileExistsError:
        return False
    finally:
        Path(name).unlink(missing_ok=True)
    return True


def _link(name: str, path: Path, text: str) -> None:
    try:
        os.link(name, path)
    except OSError as error:
        if error.errno not in {errno.EPERM, errno.ENOTSUP}:
            raise
        # A file system without hard links, such as exFAT: whole or nothing cannot be had, but never overwriting can.
        with path.open("x", encoding="utf-8") as file:
            file.write(text)


# ── what `init`, `profile new` and `tenant new` write; nothing that exists is overwritten ─────────

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
    # What the caller's environment overrides does not belong into the copy; what it holds for servers is only checked.
    environ = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    resolved = load_profile(source, deployment=deployment, environ=environ)
    assert resolved.path is not None, "a loaded profile has a file"
    document = tomlkit.parse(resolved.path.read_text("utf-8-sig"))
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
    key, digest = _new_key()

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
        _add_hash(tenants[tenant], digest)

    edit_deployment(path, change)
    return key, digest


def add_admin_key(path: Path) -> tuple[str, str]:
    """Makes an admin key in the deployment file at `path`; returns the key and its hash. Only the hash is written."""
    key, digest = _new_key()

    def change(document: tomlkit.TOMLDocument) -> None:
        if "admin" not in document:
            document["admin"] = tomlkit.table()
        _add_hash(document["admin"], digest)

    edit_deployment(path, change)
    return key, digest


def _new_key() -> tuple[str, str]:
    key = "agk_" + secrets.token_urlsafe(_KEY_BYTES)
    return key, hashlib.sha256(key.encode()).hexdigest()


def _add_hash(table: Any, digest: str) -> None:
    if "api_key_sha256" not in table:
        table["api_key_sha256"] = tomlkit.array()
    table["api_key_sha256"].append(digest)
