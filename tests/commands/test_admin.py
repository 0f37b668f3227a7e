"""`agentao-gov admin key`: printed once, kept as a hash."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path

from tests.commands.conftest import Cli


def test_an_admin_key_is_printed_once_and_its_hash_is_kept_beside_the_ones_before(cli: Cli, tmp_path: Path) -> None:
    """Comments stay; the key is nowhere in the file."""
    path = tmp_path / "agentao-gov.toml"
    path.write_text("# mine\n[pool]\nmax_sessions = 3\n")

    keys = [cli("admin", "key", "--config", str(path)).out.strip() for _ in range(2)]

    text = path.read_text()
    assert text.startswith("# mine\n")
    assert tomllib.loads(text)["admin"]["api_key_sha256"] == [hashlib.sha256(key.encode()).hexdigest() for key in keys]
    assert not any(key in text for key in keys)
