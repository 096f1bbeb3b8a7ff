"""Settings from YAML and JSON as frozen pydantic models, and pydantic's errors in one sentence a user can act on."""

import reprlib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, Strict, TypeAdapter, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from pipeline.common.errors import UserError

Model = TypeVar("Model")
Item = TypeVar("Item")

# YAML has lists, the models keep tuples: the list itself may be either, what is in it stays strict.
Listed = Annotated[tuple[Item, ...], Strict(False)]
Positive = Annotated[int, Field(gt=0)]
Natural = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NaturalFloat = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]

_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "none_required": "null",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "no_mapping": "a mapping with the keys {keys}",
    "missing": "more entries",  # of a pair: keys that a mapping lacks are told apart above
    "too_long": "no more than {max_length}",
    "too_short": "{min_length} or more of them",
    "string_too_short": "text",
    "finite_number": "a finite number",
    "literal_error": "{expected}",
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
    "string_pattern_mismatch": "hexadecimal digits in full, {pattern}",
}


class Settings(BaseModel):
    """A mapping of a settings file. Keys and types are exact: no text for a number, no 1.0 for 1, no key unknown."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=()
    )

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, values: Any) -> Any:
        """One error for all that is wrong with a mapping's keys, which names those there are."""
        if isinstance(values, cls):
            return values
        keys = list(cls.model_fields)
        if not isinstance(values, Mapping):
            raise PydanticCustomError("no_mapping", "a mapping", {"keys": ", ".join(keys)})
        if unknown := [key for key in values if key not in keys]:
            raise _said("has the unknown key {key}; the keys are {keys}.", key=reprlib.repr(unknown[0]), keys=keys)
        needed = [key for key, field in cls.model_fields.items() if field.is_required()]
        if missing := [key for key in needed if key not in values]:
            given = list(map(str, values)) or ["nothing"]
            raise _said("lacks the key {key}; it has {keys}.", key=repr(missing[0]), keys=given)
        return values


def _said(text: str, *, keys: list[str], **context: str) -> PydanticCustomError:
    return PydanticCustomError("said", text, {**context, "keys": ", ".join(keys)})


def build(kind: type[Model], values: Any, where: str) -> Model:
    """`values` as an instance of `kind`, a Settings class (or a type made of them).

    Raises UserError for the first thing that is wrong with them: `where` they stand, the field's path, what was
    found and what was expected.
    """
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        raise UserError(_sentence(error, values, where)) from None


def _sentence(error: ValidationError, values: Any, where: str) -> str:
    """The first wrong field of `values`, in words; the branches of a union that fail on it are one fault."""
    found: dict[str, list[ErrorDetails]] = {}
    for details in error.errors(include_url=False):
        found.setdefault(_path(details["loc"], values), []).append(details)
    first = next(iter(found))
    # A union's other branches stop earlier: what is wrong inside of the one that fits best is what was meant.
    path = max((path for path in found if path.startswith(first)), key=len)
    faults = found[path]
    place = f"{where}: {path}" if path else where
    for details in faults:
        if details["type"] == "said":
            return f"{place} {details['msg']}"
        if details["type"] == "value_error":
            return f"{place}: {details['ctx']['error']}"
    expected = " or ".join(dict.fromkeys(map(_expected, faults)))
    return f"{place} is {reprlib.repr(faults[0]['input'])}, expected {expected}{_exponent(faults)}."


def _expected(details: ErrorDetails) -> str:
    words = _EXPECTED.get(details["type"])
    return details["msg"] if words is None else words.format(**details.get("ctx", {}))


def _exponent(faults: list[ErrorDetails]) -> str:
    # YAML 1.1 reads 1e-3 as text: it wants a dot.
    if any(details["type"] == "float_type" and isinstance(details["input"], str) for details in faults):
        return f" (YAML needs a dot in the exponent form: 1.0e-3, not {faults[0]['input']})"
    return ""


def _path(loc: tuple[int | str, ...], values: Any) -> str:
    """A field's path as one writes it, without the names of union branches, which stand in no file."""
    return "".join(_steps(loc, values)).removeprefix(".")


def _steps(loc: tuple[int | str, ...], values: Any) -> Iterator[str]:
    for part in loc:
        if isinstance(values, Mapping) and part in values:
            yield f".{part}"
        elif isinstance(values, list | tuple) and isinstance(part, int) and part < len(values):
            yield f"[{part}]"
        else:
            continue
        values = values[part]
