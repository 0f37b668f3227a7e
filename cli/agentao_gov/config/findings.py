"""What is wrong or unwise in a configuration: findings with key, file and line, and how they become an error."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agentao_gov.errors import ConfigError, UsageError


@dataclass(frozen=True, slots=True)
class Finding:
    """One remark. An `error` cannot be run with; a `warning` can, and says what is recommended."""

    level: Literal["error", "warning"]
    #: Dotted TOML key, `limits.turn_timeout`.
    key: str
    message: str
    #: The file it stands in; None for a flag, the environment or a default.
    file: Path | None = None
    line: int | None = None
    #: Where the value came from, `flag --timeout`; empty for a file and a default.
    source: str = ""
    #: Whether the value was made to fit: those who run a turn have to hear of it, not only those who check files.
    adjusted: bool = False

    @property
    def place(self) -> str:
        """`qa.toml:12`, or nothing."""
        if self.file is None:
            return ""
        return f"{self.file}:{self.line}" if self.line else str(self.file)

    def __str__(self) -> str:
        source = f" ({self.source})" if self.source else ""
        return f"{self.place}: {self.key}: {self.message}" if self.file else f"{self.key}: {self.message}{source}"


def raise_errors(findings: Iterable[Finding], *, what: str, hint: str | None = None) -> None:
    """Raises one ConfigError that lists every error finding; warnings pass.

    Where every error was made by a flag it is a UsageError: no file has to be mended.
    """
    errors = [finding for finding in findings if finding.level == "error"]
    if not errors:
        return
    if all(finding.source.startswith("flag") for finding in errors):
        raise UsageError("; ".join(f"{finding.source.removeprefix('flag ')}: {finding.message}" for finding in errors))
    if len(errors) == 1:
        text = str(errors[0])
        raise ConfigError(text if text.endswith("?") else f"{text}.", hint=hint)
    listing = "\n".join(f"  {finding}" for finding in errors)
    raise ConfigError(f"{what} has {len(errors)} errors:\n{listing}", hint=hint)
