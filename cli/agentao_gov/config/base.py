"""What all configuration models share: closed, frozen, strict, TOML names as aliases."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from agentao_gov.config.units import ByteSize, Duration, Tokens

__all__ = ["Count", "PositiveBytes", "PositiveDuration", "PositiveTokens", "Settings"]


class Settings(BaseModel):
    """A table of a configuration file. Attributes carry units (`turn_timeout_s`); the alias is the TOML key."""

    # Strict: `max_iterations = true` and `"25"` are mistakes, not numbers.
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, validate_by_name=True, validate_by_alias=True, serialize_by_alias=True
    )


PositiveDuration = Annotated[Duration, Field(gt=0)]
PositiveTokens = Annotated[Tokens, Field(gt=0)]
PositiveBytes = Annotated[ByteSize, Field(gt=0)]
#: At least one of something.
Count = Annotated[int, Field(ge=1)]
