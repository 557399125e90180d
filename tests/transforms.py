"""Every way in which JAX differentiates a function, and whether they agree.

All are taken in one jit: out of jit each step of each would be compiled by itself, which is ten times slower.
"""

import jax
import jax.numpy as jnp
import numpy as np

#: of a function of arrays to a number; all give what the definition gives
FIRST = {
    'grad': lambda f, *a: jax.grad(f, _all(a))(*a),
    'jvp': lambda f, *a: jax.jvp(f, a, a),
    'linearize': lambda f, *a: jax.linearize(f, *a)[1](*a),
    'jacfwd': lambda f, *a: jax.jacfwd(f, _all(a))(*a),
    'remat': lambda f, *a: jax.grad(jax.checkpoint(f), _all(a))(*a),
    'vmap': lambda f, *a: jax.vmap(jax.grad(f, _all(a)))(*(jnp.stack([v, -0.7 * v, 1.9 * v]) for v in a)),
    'vmap of one': lambda f, x, *a: jax.vmap(lambda v: jax.grad(f, _all((x, *a)))(v, *a))(jnp.stack([x, -x])),
    'vmap of the others': lambda f, x, *a: jax.vmap(lambda s: jax.grad(f, _all((x, *a)))(x, *(s * v for v in a)))(
        jnp.arange(1.0, 3.0)
    ),
    'scan': lambda f, x, *a: jax.grad(
        lambda v: jax.lax.scan(lambda c, t: (c + f(v * t, *a), None), jnp.zeros((), x.dtype), jnp.arange(1.0, 3.0))[0]
    )(x),
}
#: all give the hessian, times one direction
SECOND = {
    'forward over reverse': lambda f, *a: jax.jvp(jax.grad(f, _all(a)), a, _direction(a))[1],
    'reverse over reverse': lambda f, *a: jax.grad(
        lambda *b: sum(jnp.vdot(g, d) for g, d in zip(jax.grad(f, _all(b))(*b), _direction(a), strict=True)), _all(a)
    )(*a),
    'reverse over forward': lambda f, *a: jax.grad(lambda *b: jax.jvp(f, b, _direction(a))[1], _all(a))(*a),
}


def _direction(arguments):
    return tuple(jnp.cos(1.3 * jnp.arange(a.size, dtype=a.dtype)).reshape(a.shape) for a in arguments)


def _all(arguments):
    return tuple(range(len(arguments)))


#: these are those of one argument again
OF_SEVERAL = ('vmap of one', 'vmap of the others')


def check(ours, exact, *arguments, first=1e-12, second=1e-10):
    """Every derivative of `ours`, in jit and out of it, against that of `exact`, a definition or `ours` itself.

    The tolerances are relative, and relative to the largest entry where results are near zero.
    """
    first_order = {n: t for n, t in FIRST.items() if len(arguments) > 1 or n not in OF_SEVERAL}
    got, nested = _compiled(ours, first_order, SECOND)(*arguments)
    wanted, hessian = got.copy(), nested
    if exact is not ours:
        wanted, hessian = _compiled(exact, first_order, {n: SECOND[n] for n in list(SECOND)[:1]})(*arguments)
    got['out of jit'], wanted['out of jit'] = FIRST['grad'](ours, *arguments), wanted['grad']
    for name, g in got.items():
        same(g, wanted[name], first, name)
    for name, g in nested.items():
        same(g, hessian['forward over reverse'], second, name)


def _compiled(f, *orders):
    # what is tested is rules, not what the compiler makes of them, and optimizing them would take as long as the rest
    every = lambda *a: tuple({n: t(f, *a) for n, t in transforms.items()} for transforms in orders)
    return jax.jit(every, compiler_options={'xla_backend_optimization_level': 0})


def same(got, wanted, tolerance, name=''):
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        largest = float(jnp.abs(w).max(initial=0, where=jnp.isfinite(w)))
        np.testing.assert_allclose(g, w, tolerance, tolerance * max(largest, 1e-2), err_msg=name)
