# SPDX-License-Identifier: Apache-2.0
"""The base class of config sections: typed fields that record where their values come from."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from enum import Enum
from types import UnionType
from typing import Annotated, Any, ClassVar, TypeVar, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetJsonSchemaHandler,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import CoreSchema, PydanticKnownError

from oumi.core.configs.problems import semantic_problems, translate
from oumi.core.errors import ConfigError

Complaint = tuple[str, str]
"""A key relative to the section, and the message about it."""

SET_IN_PYTHON = "set in Python"
DEFAULT = "default"

Named = TypeVar("Named", bound="NamedEnum")


def _written(value: Any) -> Any:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else value


ScalarText = Annotated[str, BeforeValidator(_written, json_schema_input_type=str | float | bool | None)]
"""Text that may be written as any YAML scalar, as in a shell: `8080`, `true`, nothing."""


class NamedEnum(Enum):
    """A choice by name or by value, in any case."""

    @classmethod
    def _missing_(cls: type[Named], value: object) -> Named | None:
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            return None
        text = str(value).rpartition(".")[2].lower()  # `TrainerType.HF` is HF
        return next((member for member in cls if text in (member.name.lower(), str(member.value).lower())), None)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "enum": [member.name for member in cls], "title": cls.__name__}


def types_in(annotation: Any) -> Iterator[Any]:
    """Yields the types of a union, or the type itself, without constraints."""
    if get_origin(annotation) in (Union, UnionType):
        for inner in get_args(annotation):
            yield from types_in(inner)
    elif get_origin(annotation) is Annotated:
        yield from types_in(get_args(annotation)[0])
    else:
        yield annotation


def is_text_key(annotation: Any) -> bool:
    """Returns True if a key takes text, and neither numbers, flags nor lists."""
    types = set(types_in(annotation))
    return str in types and not types & {int, float, bool} and not any(get_origin(kind) is list for kind in types)


class Params(BaseModel):
    """A section of a config."""

    # Unknown keys are errors, and the docstring of each field is its description in the schema.
    model_config = ConfigDict(
        extra="forbid",
        validate_assignment=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
        coerce_numbers_to_str=True,
        allow_inf_nan=False,
    )

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_flags_as_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        # pydantic converts true to 1, since bool is a subclass of int; in a config it is a mistake.
        if isinstance(value, bool):
            allowed = set(types_in(cls.model_fields[info.field_name or ""].annotation))
            if int in allowed and not allowed & {bool, Any}:
                raise PydanticKnownError("int_type")
            if float in allowed and not allowed & {bool, Any}:
                raise PydanticKnownError("float_type")
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        # An assignment is validated like a value of a file, and its error is a ConfigError.
        try:
            super().__setattr__(name, value)
        except ValidationError as error:
            raise ConfigError(translate(error, type(self), value_places={}), type(self).__name__) from None
        if name in type(self).model_fields:
            self._origins[name] = SET_IN_PYTHON

    def set_from(self, name: str, value: Any, origin: str) -> None:
        """Sets a field to a value that is written elsewhere, at `origin`."""
        setattr(self, name, value)
        self._origins[name] = origin

    def __iter__(self) -> Generator[tuple[str, Any], None, None]:
        for name in type(self).model_fields:
            yield name, getattr(self, name)

    # pydantic would compare the origins of values, too.
    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and list(self) == list(other)

    __hash__: ClassVar[None] = None  # type: ignore[assignment]  # a section can change

    def complaints(self) -> Iterator[Complaint]:
        """Yields the problems of this section that no single field has, without those of sections below."""
        yield from ()

    def finalize_and_validate(self) -> None:
        """Raises ConfigError with all problems of this section and those below. Changes nothing."""
        if problems := semantic_problems(self):
            raise ConfigError(problems, type(self).__name__)

    def own_origin(self, name: str) -> str:
        """Returns the origin of a field's value: `default`, `file:line:column`, a flag, or `set in Python`."""
        if name in self._origins:
            return self._origins[name]
        return SET_IN_PYTHON if name in self.model_fields_set else DEFAULT
