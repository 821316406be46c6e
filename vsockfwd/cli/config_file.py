"""Where the config file is, and reading it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from vsockfwd.address import Address
from vsockfwd.allow import Serve
from vsockfwd.config import Config, parse_config, parse_serve, parse_targets
from vsockfwd.errors import ConfigError
from vsockfwd.rule import RuleKind

SYSTEM = Path("/etc/vsockfwd/vsockfwd.toml")


def candidates() -> list[Path]:
    """Where a config file may be, the first that is there is the one."""
    if named := os.environ.get("VSOCKFWD_CONFIG"):
        return [Path(named)]
    own = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return [Path(own) / "vsockfwd/vsockfwd.toml", SYSTEM]


def find(named: str | None) -> Path:
    """The config file: the one that was named, or the first that is there. Raises ConfigError."""
    if named is not None:
        return Path(named)
    for path in candidates():
        if path.exists():
            return path
    raise ConfigError(
        "there is no config file", hint=f"-c FILE names one; looked for {' and '.join(map(str, candidates()))}"
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {(error.strerror or '').lower()}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8, which TOML is written in") from None


def load(path: Path, kinds: Mapping[str, RuleKind], guests: Mapping[str, Address]) -> Config:
    """Read and check a config file; rules may name its targets, and guests. Raises ConfigError."""
    return parse_config(_read(path), str(path), kinds, guests)


def load_serve(named: str | None) -> Serve:
    """What [serve] of the config file says, the defaults where there is none. Raises ConfigError."""
    if named is not None:
        return parse_serve(_read(Path(named)), named)
    for path in candidates():
        if path.exists():
            return parse_serve(_read(path), str(path))
    return Serve()


def load_targets() -> Mapping[str, Address]:
    """The names that the config file gives targets, none where there is no file. Raises ConfigError."""
    for path in candidates():
        if path.exists():
            return parse_targets(_read(path), str(path))
    return {}
