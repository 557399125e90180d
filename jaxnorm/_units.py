"""`brainunit` at the door: kernels compute on plain arrays, units are taken off before and put on after."""

from collections.abc import Mapping
from typing import Any

import brainunit as u

Unit = u.Unit


def unit_of(value: Any) -> Unit | None:
    """The unit of a Quantity that has one; None for plain arrays and dimensionless Quantities."""
    if isinstance(value, u.Quantity) and not value.unit.dim.is_dimensionless:
        return value.unit
    return None


def dimensionless(op: str, argument: str, value: Any) -> Any:
    """Take the wrapper off a dimensionless Quantity; refuse one that has a unit."""
    if not isinstance(value, u.Quantity):
        return value
    unit = unit_of(value)
    if unit is not None:
        raise TypeError(
            f'{op}: {argument} must be dimensionless, got a Quantity in {unit}; '
            f'divide it by a reference value first, for example by 1 {unit}.'
        )
    return value.to_decimal()


def in_unit(op: str, argument: str, value: Any, unit: Unit | None) -> Any:
    """The number of `value` in `unit`; without a unit it has to be dimensionless."""
    if unit is None:
        return dimensionless(op, argument, value)
    if not isinstance(value, u.Quantity):
        return value  # a plain number counts in the input's own unit, as epsilon does
    if not value.unit.has_same_dim(unit):
        raise TypeError(
            f'{op}: {argument} must be in {unit} to match the input, got {value.unit}; convert one of the two.'
        )
    return value.to_decimal(unit)


def strip(
    op: str, arguments: Mapping[str, Any], first: str, powers: Mapping[str, int], accepts: bool
) -> tuple[dict[str, Any], Unit | None]:
    """Take the units off all arguments of a kernel, and return them with the unit of the first.

    `first` may have a unit where the kernel `accepts` one; an argument named in `powers` is measured in
    that power of it; all others are dimensionless.
    """
    unit = unit_of(arguments[first]) if accepts else None
    plain = {}
    for name, value in arguments.items():
        power = 1 if name == first else powers.get(name, 0)
        plain[name] = in_unit(op, name, value, None if unit is None or power == 0 else unit**power)
    return plain, unit


def attach(value: Any, unit: Unit | None, power: int) -> Any:
    """Put `unit ** power` on a result."""
    return value if unit is None or power == 0 else u.Quantity(value, unit=unit**power)


def dress(result: Any, unit: Unit | None, powers: int | tuple[int, ...] | None) -> Any:
    """Put units on the result, or on each of several results, of a kernel."""
    if isinstance(powers, tuple):
        return tuple(attach(r, unit, p) for r, p in zip(result, powers, strict=True))
    return attach(result, unit, powers or 0)


def number(value: Any) -> Any:
    """The plain array of a result, whatever its unit."""
    return value.mantissa if isinstance(value, u.Quantity) else value


def like(value: Any, other: Any) -> Any:
    """`value` in the unit of `other`, where both have one: states keep the unit that they have."""
    unit = unit_of(other)
    if unit is None or unit_of(value) is None or not value.unit.has_same_dim(unit):
        return value  # the kernels refuse what does not fit
    return u.Quantity(value.to_decimal(unit), unit=unit)
