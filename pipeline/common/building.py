"""Dataclasses from YAML's mappings and lists, recursively, with errors that name the key."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin

from pipeline.common.errors import UserError

Config = TypeVar("Config")


def build(cls: type[Config], values: Any, where: str) -> Config:
    """A dataclass from a mapping, recursively. Raises UserError for unknown or missing keys and wrong types."""
    if not isinstance(values, Mapping):
        raise UserError(f"{where} is {values!r}, expected a mapping with {_keys(cls)}.")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    if unknown := [str(key) for key in values if key not in fields]:
        raise UserError(f"{where} has the unknown key {unknown[0]!r}; the keys are {', '.join(fields)}.")
    required = [
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing := [name for name in required if name not in values]:
        given = ", ".join(map(str, values)) or "nothing"
        raise UserError(f"{where} lacks the key {missing[0]!r}; it has {given}.")
    built = {name: _convert(hints[name], value, f"{where}: {name}") for name, value in values.items()}
    return cls(**built)


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin = get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(get_args(hint), value, where)
    if origin is Literal:
        if value not in get_args(hint):
            raise UserError(f"{where} is {value!r}, expected one of {', '.join(map(str, get_args(hint)))}.")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise UserError(f"{where} is {value!r}, expected a list.")
        kinds = get_args(hint)
        if kinds[-1] is Ellipsis:
            kinds = (kinds[0],) * len(value)
        if len(kinds) != len(value):
            raise UserError(f"{where} is {value!r}, expected {len(kinds)} entries.")
        return tuple(
            _convert(kind, item, f"{where}[{place}]")
            for place, (kind, item) in enumerate(zip(kinds, value, strict=True))
        )
    if origin is dict:
        if not isinstance(value, Mapping):
            raise UserError(f"{where} is {value!r}, expected a mapping.")
        return {key: _convert(get_args(hint)[1], item, f"{where}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, where)
    if hint is float and type(value) is int:
        return float(value)
    if hint is float and isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where} is {value}, expected a finite number.")
    if type(value) is not hint:
        hint_name = "null" if hint is type(None) else hint.__name__
        raise UserError(f"{where} is {value!r}, expected {hint_name}{_number_hint(hint, value)}.")
    return value


def _convert_union(options: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in options:
        return None
    reasons = []
    for option in options:
        if option is type(None):
            continue
        try:
            return _convert(option, value, where)
        except UserError as error:
            reasons.append(error)
    raise reasons[0] if len(reasons) == 1 else UserError(" ".join(map(str, reasons)))


def _number_hint(hint: Any, value: Any) -> str:
    # YAML 1.1 reads 1e-3 as text: it wants a dot.
    if hint is float and isinstance(value, str):
        return f" (YAML needs a dot in the exponent form: 1.0e-3, not {value})"
    return ""


def _keys(cls: Any) -> str:
    return "the keys " + ", ".join(field.name for field in dataclasses.fields(cls))
