"""Shared vocabulary of the annotations."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax

Array: TypeAlias = jax.Array
#: What a kernel takes: anything `jax.numpy` takes, or a `brainunit.Quantity`. Inside a kernel it is an array; no
#: union says both.
ArrayLike: TypeAlias = Any
#: One axis or several, negative ones counted from the end.
Axes: TypeAlias = int | Sequence[int]
#: The size of a layer's input without its batch: channels, or a whole shape.
Size: TypeAlias = int | Sequence[int]
#: The name (or names) of a mapped axis, as in `jax.lax.psum`.
AxisName: TypeAlias = str | Sequence[str]
#: Groups of devices that share their statistics, as in `jax.lax.psum`.
AxisGroups: TypeAlias = Sequence[Sequence[int]]
#: What a kernel returns: an array, or a Quantity where the input was one and the op keeps units.
Result: TypeAlias = Any
#: A function that follows a norm, or the name of one.
Activation: TypeAlias = Callable[[Any], Any] | str
