"""Dataclass fields as command line flags: their rules, parsing and help.

It knows no hyperparameter; those are the fields of `config.Config`.
"""

import dataclasses
import json
import math
import re
import textwrap
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import flags

from trainer import errors

_WIDTH = 79


@dataclasses.dataclass(frozen=True)
class Option:
    """What is known of a field besides its name, type and default.

    Attributes:
        topic: Heading under which `--help` lists the flag.
        help: What the value does, in a sentence or two.
        unit: What the value counts or names.
        changes_result: Whether another value gives other weights; such a
            field must stay as it is for as long as the run is resumed.
        choices: The legal values; empty if there is no such list.
        minimum: The least legal number; of fractions, else all above 0 are.
        maximum: The greatest legal number.
        pattern: Regular expression that a text must match as a whole.
        rule: The pattern, in words.
        default_text: The default in words, where it is not a constant.
    """

    topic: str
    help: str
    unit: str
    changes_result: bool
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    pattern: str = ""
    rule: str = ""
    default_text: str = ""


def declare(
    changes_result: bool,
    topic: str,
    default: Any,
    help: str,
    unit: str = "",
    **rules: Any,
) -> Any:
    """Returns a dataclass field with an `Option` made from the arguments."""
    option = Option(topic, help, unit, changes_result, **rules)
    return dataclasses.field(default=default, metadata={"option": option})


def fields(config_type: type) -> Iterator[tuple[dataclasses.Field, Option]]:
    """Yields the fields of `config_type` that are flags, with their options."""
    for field in dataclasses.fields(config_type):
        if "option" in field.metadata:
            yield field, field.metadata["option"]


def subset(config_type: type, topic: str) -> type:
    """Returns a dataclass with the fields of one topic only."""
    return dataclasses.make_dataclass(
        f"{topic}Of{config_type.__name__}",
        [
            (
                field.name,
                typing.cast(type, field.type),
                dataclasses.field(
                    default=field.default, metadata=field.metadata
                ),
            )
            for field, option in fields(config_type)
            if option.topic == topic
        ],
        frozen=True,
    )


def check_values(config_type: type, values: Mapping[str, Any]) -> None:
    """Raises UsageError for the first value that breaks its field's rule."""
    for field, option in fields(config_type):
        value = values[field.name]
        if not _obeys(field, option, value):
            raise _illegal(field, option, value)


def changed_values(
    config_type: type, values: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns those of `values` that are not their fields' defaults."""
    return {
        field.name: values[field.name]
        for field, _ in fields(config_type)
        if field.name in values and values[field.name] != field.default
    }


def define_flags(
    config_type: type, flag_values: flags.FlagValues = flags.FLAGS
) -> None:
    """Defines one flag in `flag_values` for each field of `config_type`."""
    for field, option in fields(config_type):
        parser = _Parser(field, option)
        names = (None, field.name, field.default, option.help)
        flag = (
            flags.MultiFlag(parser, *names)
            if _is_repeated(field)
            else flags.Flag(parser, *names, boolean=_kind(field) is bool)
        )
        flags.DEFINE_flag(flag, flag_values)


def parse(
    config_types: Sequence[type], argv: Sequence[str], hint: str
) -> flags.FlagValues:
    """Reads a command line, program name first, of nothing but flags.

    The flags are the fields of all `config_types`.

    Raises:
        UsageError: A flag or a value is not legal; the message ends in `hint`.
    """
    # A set of our own: absl's holds the flags of every imported library too,
    # and can be parsed only once in a process.
    flag_values = flags.FlagValues()
    for config_type in config_types:
        define_flags(config_type, flag_values)
    try:
        leftover = flag_values(argv)[1:]
    except (flags.Error, ValueError) as error:
        raise errors.UsageError(f"{error}\n{hint}") from error
    if leftover:
        raise errors.UsageError(
            f"{leftover[0]!r} is not a flag, and only flags are understood:"
            f" --name=value, or --name and --noname for what is true or false."
            f" {hint}"
        )
    return flag_values


def values_from_flags(
    config_type: type, flag_values: flags.FlagValues
) -> dict[str, Any]:
    """Returns the value of every field's flag, by name."""
    values = {}
    for field, _ in fields(config_type):
        value: Any = flag_values[field.name].value
        values[field.name] = tuple(value) if _is_repeated(field) else value
    return values


def given_flags(config_type: type, flag_values: flags.FlagValues) -> list[str]:
    """Returns the flags that were given, in the order of the fields.

    They say the same on another machine, where no --flagfile is.
    """
    given = []
    for field, _ in fields(config_type):
        flag: Any = flag_values[field.name]
        values = flag.value if _is_repeated(field) else [flag.value]
        if not flag.present:
            continue
        if _kind(field) is bool:
            given.append(f"--{'' if flag.value else 'no'}{field.name}")
        else:
            given += [f"--{field.name}={value}" for value in values]
    return given


def values_from_json(
    config_type: type, text: str | bytes, source: str
) -> dict[str, Any]:
    """Returns the values in the JSON object `text`, by name.

    A field that is missing is one that is newer than the text: its default
    stands for what was done before it existed.

    Raises:
        UsageError: The object has what is no field, or a value breaks its
            field's rule; the message names `source`.
    """
    try:
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("it is not a JSON object")
        defaults = {f.name: f.default for f, _ in fields(config_type)}
        if unknown := sorted(values.keys() - defaults.keys()):
            raise ValueError(f"unknown: {', '.join(unknown)}")
        values = defaults | values
        check_values(config_type, values)
    except (ValueError, errors.UsageError) as error:
        raise errors.UsageError(
            f"{source} is not a config of this version: {error}"
        ) from error
    return values


def help_text(config_type: type) -> str:
    """Returns the flags of `config_type` under their topics."""
    lines = []
    topic = ""
    for field, option in fields(config_type):
        if option.topic != topic:
            topic = option.topic
            lines += ["", f"{topic}:"]
        lines.append(f"  {_usage(field, option)}")
        text = f"{option.help} Default: {_default_text(field, option)}."
        indent = " " * 6
        lines += textwrap.wrap(
            text, _WIDTH, initial_indent=indent, subsequent_indent=indent
        )
    return "\n".join(lines[1:])


class _Parser(flags.ArgumentParser):
    """Turns a flag's text into a value that obeys the field's rule."""

    def __init__(self, field: dataclasses.Field, option: Option) -> None:
        self._field = field
        self._option = option
        self.syntactic_help = option.help

    def parse(self, argument: Any) -> Any:
        """Returns the value that the text `argument` stands for.

        Raises:
            UsageError: The text stands for no legal value.
        """
        kind = _kind(self._field)
        value = argument
        try:
            if kind is bool:
                value = flags.BooleanParser().parse(argument)
            elif kind is not str:
                value = kind(argument)
        except (TypeError, ValueError):
            pass  # It is still text, which the rule below refuses.
        if not _obeys(self._field, self._option, value):
            raise _illegal(self._field, self._option, argument)
        return value


def _kind(field: dataclasses.Field) -> type:
    """Returns `int` for a field of type `int` or `int | None`."""
    alternatives = typing.get_args(field.type)
    return alternatives[0] if alternatives else typing.cast(type, field.type)


def _is_repeated(field: dataclasses.Field) -> bool:
    """Whether the flag may be given several times."""
    return typing.get_origin(field.type) is tuple


def _obeys(field: dataclasses.Field, option: Option, value: Any) -> bool:
    if isinstance(value, tuple) and _is_repeated(field):
        return all(_obeys(field, option, item) for item in value)
    if value is None:
        return field.default is None
    kind = _kind(field)
    exact_type = type(value)
    if exact_type is not kind:  # True is an int, but it counts nothing.
        return False
    if kind is str:
        if option.pattern:
            return re.fullmatch(option.pattern, value) is not None
        return value in option.choices if option.choices else value != ""
    low, high = option.minimum, option.maximum
    if kind is float and low is None:
        return math.isfinite(value) and value > 0
    if kind in (int, float):
        return (low is None or value >= low) and (high is None or value <= high)
    return True


def _rule(field: dataclasses.Field, option: Option) -> str:
    kind = _kind(field)
    if option.rule:
        return option.rule
    if option.choices:
        return f"one of {', '.join(option.choices)}"
    if kind is bool:
        return "true or false"
    if kind is float:
        if option.minimum is None:
            return "a finite number above 0"
        return f"a number from {option.minimum} to {option.maximum}"
    if kind is str:
        return f"the name of a {option.unit}"
    if option.maximum is not None:
        return f"a whole number from {option.minimum} to {option.maximum}"
    return f"a whole number, {option.minimum} or more"


def _illegal(
    field: dataclasses.Field, option: Option, value: Any
) -> errors.UsageError:
    return errors.UsageError(
        f"--{field.name}={value} is not valid: the value must be"
        f" {_rule(field, option)}. Without the flag it is"
        f" {_default_text(field, option)}."
    )


def _default_text(field: dataclasses.Field, option: Option) -> str:
    if option.default_text:
        return option.default_text
    if field.default in (None, ()):
        return "none"
    if _kind(field) is bool:
        return str(field.default).lower()
    return str(field.default)


def _usage(field: dataclasses.Field, option: Option) -> str:
    if _kind(field) is bool:
        return f"--{field.name}, --no{field.name}"
    if option.choices:
        return f"--{field.name}={{{','.join(option.choices)}}}"
    return f"--{field.name}=<{option.unit}>"
