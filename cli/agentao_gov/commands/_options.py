"""Options that several commands share, so that they are named and explained alike."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="PATH", help="The deployment file. Default: ./agentao-gov.toml where it exists."),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="K=V", help="Override one setting, like limits.turn_timeout=30s. Repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="JSON on standard output, one line.")]
Strict = Annotated[bool, typer.Option("--strict", help="A warning fails, too.")]
Mode = Annotated[str | None, typer.Option("--mode", metavar="MODE", help="fresh, in-process or subprocess.")]
Model = Annotated[
    str | None, typer.Option("--model", metavar="NAME", help="The model's name, or: embedded, simulated.")
]
BaseUrl = Annotated[
    str | None, typer.Option("--base-url", metavar="URL", help="Address of an OpenAI-compatible endpoint.")
]
ApiKeyEnv = Annotated[
    str | None, typer.Option("--api-key-env", metavar="NAME", help="Environment variable that holds the API key.")
]
