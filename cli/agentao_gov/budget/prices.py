"""What tokens cost: a table of models, shipped and extended by the user. Integers: trillionths of a US dollar."""

from __future__ import annotations

import tomllib
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any

from agentao_gov.budget.reservation import Price
from agentao_gov.errors import ConfigError

PICO_PER_USD = 10**12
_TOKENS_PER_UNIT = 10**6
_SHIPPED = Path(__file__).with_name("prices.toml")


class PriceTable:
    """Prices by model. Immutable."""

    def __init__(self, prices: dict[str, Price]) -> None:
        # Longest first: "gpt-4.1-mini-2025" is a gpt-4.1-mini, not a gpt-4.1.
        self._prices = sorted(prices.items(), key=lambda item: -len(item[0]))
        self.price = lru_cache(maxsize=256)(self._find)

    @classmethod
    def load(cls, own: Path | None = None) -> PriceTable:
        """The shipped table with the user's on top. Raises ConfigError for a file that is no price table."""
        prices = _read(_SHIPPED)
        if own is not None:
            prices |= _read(own)
        return cls(prices)

    def _find(self, model: str) -> Price | None:
        """The model's price, or None: unknown is not free."""
        name = model.rpartition("/")[2]
        return next((price for prefix, price in self._prices if name.startswith(prefix)), None)


def usd(pico: int) -> str:
    """`$1.23`; four digits below a dollar."""
    amount = Decimal(pico) / PICO_PER_USD
    return f"${amount:,.2f}" if amount >= 1 else f"${amount:.4f}"


def _read(path: Path) -> dict[str, Price]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8-sig"), parse_float=Decimal)
    except (OSError, ValueError) as error:
        raise ConfigError(f"The price table {path} cannot be read: {error}.") from error
    models = document.get("models")
    if not isinstance(models, dict):
        raise ConfigError(f"The price table {path} has no [models].", hint='Write "NAME" = { prompt = USD, ... }.')
    return {str(name): _price(path, name, entry) for name, entry in models.items()}


def _price(path: Path, name: str, entry: Any) -> Price:
    hint = f'Write "{name}" = {{ prompt = 2.00, completion = 8.00 }}: USD per million tokens.'
    if not isinstance(entry, dict) or set(entry) != {"prompt", "completion"}:
        raise ConfigError(f"{path}: {name} needs the prices `prompt` and `completion`, and nothing else.", hint=hint)
    amounts = []
    for kind in ("prompt", "completion"):
        value = entry[kind]
        if isinstance(value, bool) or not isinstance(value, int | Decimal) or not 0 <= value < _TOKENS_PER_UNIT:
            raise ConfigError(f"{path}: the {kind} price of {name} cannot be {value}.", hint=hint)
        pico = Decimal(value) * (PICO_PER_USD // _TOKENS_PER_UNIT)
        if pico != int(pico):
            raise ConfigError(f"{path}: the {kind} price of {name} has more than six decimals.", hint=hint)
        amounts.append(int(pico))
    return Price(*amounts)
