"""A linear map with a transpose of its own: what lean derivative rules are made of.

A derivative rule in JAX is a linear map of the tangents. Left to itself, JAX transposes it operation by
operation and keeps for the backward pass whatever those operations multiply with. Written as *one* primitive,
the map keeps its residuals and nothing else, its transpose is free in its form (fused, or blocked for the
cache), and every transformation still works:

- grad, vjp, linearize: partial evaluation sees one unknown equation with known residuals, and transposing it
  swaps the two functions;
- jvp of the map (second derivatives, either nesting): linear in the operands, so the same map again; in the
  residuals, ordinary differentiation of the function that the map is made of;
- vmap: the map of the mapped functions;
- jit, scan, remat, shard_map: it lowers to the function itself.

Functions given to `linear` must be hashable and equal when they do the same (module-level functions, frozen
dataclasses), for they are parameters of an equation and so part of compilation caches.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import ad, batching, mlir

from .._typing import Array

#: (residuals, operands) -> results. An operand that is zero comes as None, and so goes a result that is zero.
Map = Callable[[Sequence[Array], Sequence[Array | None]], Sequence[Array | None]]

linear_p = core.Primitive('linear')
linear_p.multiple_results = True


def linear(
    forward: Map, transpose: Map, residuals: Sequence[Array], operands: Sequence[Array | None], results: int = 1
) -> list[Array]:
    """Apply `forward(residuals, operands)` as one linear map of the operands.

    Parameters
    ----------
    forward, transpose : callable
        `(residuals, operands) -> results`, each linear in its operands and the transpose of the other.
        `transpose` is given cotangents of the results and returns cotangents of the operands.
    residuals : sequence of array
        What both functions need beside their operands: exactly what is saved for the backward pass.
    operands : sequence of array or None
        What the map is linear in; None stands for zeros.
    results : int
        How many results `forward` returns.
    """
    mask = tuple(t is not None for t in operands)
    return linear_p.bind(
        *_alike([*residuals, *(t for t in operands if t is not None)]),
        forward=forward,
        transpose=transpose,
        given=mask,
        wanted=(True,) * results,
    )


def _alike(arrays: list[Array]) -> list[Array]:
    """Arrays as the parts of one on each device where some are and others are the same on all, in a `shard_map`.

    What is the same has a cotangent that is summed over devices, and that is left to JAX.
    """
    varying = [frozenset(getattr(getattr(jax.typeof(a), 'manual_axis_type', None), 'varying', ())) for a in arrays]
    every = frozenset().union(*varying)
    return [
        jax.lax.pcast(a, tuple(sorted(every - own, key=str)), to='varying') if every - own else a
        for a, own in zip(arrays, varying, strict=True)
    ]


def _split(args: Sequence[Any], given: tuple[bool, ...]) -> tuple[list[Any], list[Any]]:
    """Part the arguments into residuals and operands, the latter with None where zero."""
    count = len(args) - sum(given)
    rest = iter(args[count:])
    return list(args[:count]), [next(rest) if g else None for g in given]


def _apply(
    *args: Array, forward: Map, transpose: Map, given: tuple[bool, ...], wanted: tuple[bool, ...]
) -> list[Array]:
    del transpose
    residuals, operands = _split(args, given)
    results = forward(residuals, operands)
    return [r for r, w in zip(results, wanted, strict=True) if w]  # type: ignore[misc]


def _abstract(*avals: Any, **params: Any) -> list[Any]:
    return jax.make_jaxpr(lambda *args: _apply(*args, **params))(*avals).out_avals


def _jvp(primals: Sequence[Array], tangents: Sequence[Any], **params: Any) -> tuple[list[Array], list[Array]]:
    count = len(primals) - sum(params['given'])
    residuals, operands = primals[:count], primals[count:]
    out = linear_p.bind(*primals, **params)
    parts = []
    moving = [type(t) is not ad.Zero for t in tangents[count:]]
    if any(moving):  # linear in the operands: the map itself, of those whose tangent is not zero
        rest = iter(moving)
        given = tuple(g and next(rest) for g in params['given'])
        shown = [t for t, m in zip(tangents[count:], moving, strict=True) if m]
        parts.append(linear_p.bind(*residuals, *shown, **{**params, 'given': given}))
    bent = [i for i, t in enumerate(tangents[:count]) if type(t) is not ad.Zero]
    if bent:  # in the residuals: the derivative of the function that the map is made of

        def of_residuals(*values: Array) -> list[Array]:
            full = list(residuals)
            for i, v in zip(bent, values, strict=True):
                full[i] = v
            return _apply(*full, *operands, **params)

        parts.append(jax.jvp(of_residuals, [residuals[i] for i in bent], [tangents[i] for i in bent])[1])
    if not parts:
        return out, [jnp.zeros_like(o) for o in out]
    return out, [p[0] if len(p) == 1 else p[0] + p[1] for p in zip(*parts, strict=True)]


def _transpose(
    cotangents: Sequence[Any], *args: Any, forward: Map, transpose: Map, given: Any, wanted: Any
) -> list[Any]:
    count = len(args) - sum(given)
    flowing = [type(c) is not ad.Zero for c in cotangents]
    rest = iter(flowing)
    back_given = tuple(w and next(rest) for w in wanted)
    unknown = iter(ad.is_undefined_primal(a) for a in args[count:])
    back_wanted = tuple(g and next(unknown) for g in given)
    back = iter(
        linear_p.bind(
            *args[:count],
            *(c for c, f in zip(cotangents, flowing, strict=True) if f),
            forward=transpose,
            transpose=forward,
            given=back_given,
            wanted=back_wanted,
        )
    )
    return [None] * count + [next(back) if ad.is_undefined_primal(a) else None for a in args[count:]]


@dataclass(frozen=True)
class _Mapped:
    """A map applied along a leading axis of all operands and of those residuals that have one."""

    function: Map
    residual_axes: tuple[int | None, ...]

    def __call__(self, residuals: Sequence[Array], operands: Sequence[Array | None]) -> Sequence[Array | None]:
        axes = (list(self.residual_axes), [None if t is None else 0 for t in operands])
        return jax.vmap(self.function, in_axes=axes, out_axes=0)(list(residuals), list(operands))


def _batch(args: Sequence[Array], dims: Sequence[Any], *, forward: Map, transpose: Map, given: Any, wanted: Any) -> Any:
    count = len(args) - sum(given)
    size = next(a.shape[d] for a, d in zip(args, dims, strict=True) if d is not None)
    # operands all get the axis, so that each result and each cotangent has one; residuals only where they vary
    front = [
        jnp.moveaxis(a, d, 0) if d is not None else a if i < count else jnp.broadcast_to(a, (size, *a.shape))
        for i, (a, d) in enumerate(zip(args, dims, strict=True))
    ]
    axes = tuple(None if d is None else 0 for d in dims[:count])
    out = linear_p.bind(
        *front, forward=_Mapped(forward, axes), transpose=_Mapped(transpose, axes), given=given, wanted=wanted
    )
    return out, [0] * len(out)


linear_p.def_impl(_apply)
linear_p.def_abstract_eval(_abstract)
ad.primitive_jvps[linear_p] = _jvp
ad.primitive_transposes[linear_p] = _transpose
batching.primitive_batchers[linear_p] = _batch
mlir.register_lowering(linear_p, mlir.lower_fun(_apply, multiple_results=True))
