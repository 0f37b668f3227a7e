"""Shares out what the environment and `--set` say between the profile and the deployment, by table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pydantic import BaseModel

from agentao_gov.config.deployment import Deployment
from agentao_gov.config.keys import nearest_key, type_at
from agentao_gov.config.layers import Layer, Overrides, environment_layers, flag_layers, set_layers
from agentao_gov.config.profile import Profile
from agentao_gov.errors import ConfigError

__all__ = ["layers_for"]


def layers_for(model: type[BaseModel], overrides: Overrides, environ: Mapping[str, str]) -> Iterator[Layer]:
    """The layers of environment, `--set` and flags that belong to one model, lowest first.

    `model.*` belongs to both. Raises ConfigError for a key that neither has: a mistyped override that is ignored
    would be a limit that does not hold.
    """
    other: type[BaseModel] = Profile if model is Deployment else Deployment
    layers = [
        *environment_layers(environ, model),
        *set_layers(overrides.sets, model),
        *flag_layers(overrides.flags),
    ]
    for layer in layers:
        ((section, _),) = layer.values.items()
        if section in model.model_fields:
            yield layer
        elif section not in other.model_fields:
            raise ConfigError(f"{layer.source}: unknown key{_suggestion(layer)}.")


def _suggestion(layer: Layer) -> str:
    key = next(iter(layer.values))
    value = layer.values[key]
    while isinstance(value, dict) and value:
        name = next(iter(value))
        key, value = f"{key}.{name}", value[name]
    near = nearest_key(Profile, key) or nearest_key(Deployment, key)
    return f"; did you mean {near}?" if near and (type_at(Profile, near) or type_at(Deployment, near)) else ""
