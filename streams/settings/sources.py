"""Where settings come from: the file, over it the environment, below both the dev services."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec
import orjson

from streams.errors import SettingsInvalid
from streams.settings.addresses import VARIABLES, meant_for_us
from streams.settings.combinations import check
from streams.settings.refusal import refusal
from streams.settings.sections import FILE, Settings

DEV_SERVICES = Path(".dev") / "services.json"
# What Kubernetes tells every pod of a service named `streams` or `streams-relay`: it says nothing
# about us.  A port alone is an address there; another value is somebody's who meant our setting.
_SERVICE_LINK = re.compile(
    r"STREAMS(_[A-Z0-9]+)*_"
    r"(SERVICE_HOST=.*|SERVICE_PORT(_[A-Z0-9_]+)?=.*"
    r"|PORT=(tcp|udp|sctp)://.*|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?=.*)"
)


def load(
    path: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    *,
    dev_services: Path | None = None,
) -> Settings:
    """Settings from `path` (default `$STREAMS_CONFIG`, else `faust.yml` here) and the environment.

    A missing file means defaults, unless it was named. `dev_services` is the note `streams up`
    leaves beside the file.
    """
    config = environ.get("STREAMS_CONFIG", "").strip()
    named = path or (Path(config) if config else None)
    file = named or Path(FILE)
    if named is not None and not named.is_file():
        raise SettingsInvalid(f"settings file {named} does not exist")
    raw = _read(file) if file.is_file() else {}
    _override(raw, environ)
    dev = _dev_services(dev_services or file.parent / DEV_SERVICES)
    for section in ("database", "broker"):
        values = raw.setdefault(section, {})
        if isinstance(values, dict) and not values.get("url"):
            values["url"] = dev.get(f"{section}_url")
    try:
        settings = msgspec.convert(raw, Settings)
    except msgspec.ValidationError as error:
        raise SettingsInvalid(refusal(error, raw)) from None
    check(settings)
    return settings


def parsed(text: str) -> Any:
    """What this YAML says; by libyaml where PyYAML has it: a tenth of a second less at each start.

    yaml.YAMLError, ValueError for a date that is none, RecursionError.
    """
    import yaml  # when settings are read: importing `streams.outbox` has no use for it

    try:
        return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError:
        return yaml.safe_load(text)  # which says better what is wrong, and where


def _read(file: Path) -> dict[str, Any]:
    import yaml

    try:
        raw = parsed(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsInvalid(f"{file} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" line {where.line + 1}" if where else ""
        raise SettingsInvalid(
            f"{file}{line} is not YAML: {getattr(error, 'problem', None) or 'broken'}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise SettingsInvalid(
            f"{file} is not YAML: {error}"
        ) from None  # 2026-13-45 looks like a date
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise SettingsInvalid(
            f"{file} is a {type(raw).__name__}: expected sections (database:, broker:, ...)"
        )
    # A section whose keys are all commented out is null.
    return {
        key: {} if value is None else value
        for key, value in raw.items()
        if (key, value) != ("agents", None)
    }


def _override(raw: dict[str, Any], environ: Mapping[str, str]) -> None:
    for section, name in VARIABLES.items():
        url = environ.get(name, "").strip()
        if url and meant_for_us(section, url):
            _section(raw, section, name)["url"] = url
    for name, text in environ.items():
        if (
            not name.startswith("STREAMS_")
            or name == "STREAMS_CONFIG"
            or _SERVICE_LINK.fullmatch(f"{name}={text}")
        ):
            continue
        # As compose files and charts pass what nobody has set.
        if not text.strip():
            continue
        section, _, key = name.removeprefix("STREAMS_").lower().partition("__")
        if section not in Settings.__struct_fields__:
            raise SettingsInvalid(f"{name}: {_unknown(section)}")
        if key:
            # A password is not YAML: what holds text is taken as it is.
            is_text = (section, key) in _text_keys()
            _section(raw, section, name)[key] = text if is_text else _scalar(name, text)
        else:
            raw[section] = _scalar(name, text)


def _unknown(section: str) -> str:
    """Why a variable means nothing; often it has one underscore too few."""
    for known, kind in get_type_hints(Settings).items():
        key = section.removeprefix(f"{known}_")
        if key != section and key in getattr(kind, "__struct_fields__", ()):
            return f"expected two underscores: STREAMS_{known.upper()}__{key.upper()}"
    return f"unknown setting {section!r}: expected one of {', '.join(Settings.__struct_fields__)}"


def _section(raw: dict[str, Any], section: str, name: str) -> dict[str, Any]:
    """The section that a variable writes to.

    SettingsInvalid when the file has something else there.
    """
    target = raw.setdefault(section, {})
    if not isinstance(target, dict):
        raise SettingsInvalid(
            f"{name}: {section!r} is a {type(target).__name__}: expected a section of keys"
        )
    return target


@cache
def _text_keys() -> set[tuple[str, str]]:
    """The (section, key) of every text or choice."""
    keys = set()
    for section, kind in get_type_hints(Settings).items():
        for key, hint in get_type_hints(kind).items() if isinstance(kind, type) else ():
            kinds = {hint} if get_origin(hint) is Literal else set(get_args(hint) or (hint,))
            if all(each in (str, NoneType) or get_origin(each) is Literal for each in kinds):
                keys.add((section, key))
    return keys


def _scalar(name: str, text: str) -> Any:
    import yaml

    try:
        return parsed(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        secret = name.startswith(
            ("STREAMS_DATABASE", "STREAMS_BROKER", "STREAMS_CONNECT", "STREAMS_WEB")
        )
        raise SettingsInvalid(
            f"{name} is {'***' if secret else repr(text)}: expected a YAML value"
        ) from None


def _dev_services(note: Path) -> dict[str, Any]:
    """What `streams up` wrote, while its supervisor still lives."""
    try:
        services = orjson.loads(note.read_bytes())
        pid = services["pid"]
        os.kill(pid, 0)
    except PermissionError:
        pass  # alive, but somebody else's
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return {}
    return services if isinstance(services, dict) and pid > 0 else {}
