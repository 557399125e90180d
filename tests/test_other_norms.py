"""Norms of a response, EvoNorm, curves in place of a norm and whitening: kernels and modules."""

import copy
import functools
import importlib.util
import itertools
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
import references as ref
import transforms

import jaxnorm
from jaxnorm import functional as F
from jaxnorm import nn
from jaxnorm.benchmark._accuracy import ulps
from jaxnorm.functional import _elementary as elementary

pytestmark = pytest.mark.slow  # many compilations

SHAPE = (6, 16, 32)  # batch, positions, channels


# what is tested by it are rules, not what the compiler makes of them
quick = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})


def moments(x, axes):
    mean = x.mean(axes, keepdims=True)
    return mean, ((x - mean) ** 2).mean(axes, keepdims=True)


def local_response(x):
    around = jnp.pad(x * x, [(0, 0)] * (x.ndim - 1) + [(2, 1)])
    return x / (1 + 1e-4 / 4 * sum(around[..., i : i + x.shape[-1]] for i in range(4))) ** 0.75


def scaled(x, scale=1.0):
    return x / jnp.sqrt((x * x).sum(-1, keepdims=True)) * scale


def global_response(x, scale, bias):
    length = jnp.sqrt((x * x).sum(1, keepdims=True))
    return scale * x * length / (length.mean(-1, keepdims=True) + 1e-6) + bias + x


def filter_response(x, scale, bias, threshold, extra):
    square = (x * x).mean(1, keepdims=True) + 1e-6 + jnp.abs(extra)
    return jnp.maximum(x / jnp.sqrt(square) * scale + bias, threshold)


def b0(x, v, scale, bias):
    batch, own = moments(x, (0, 1))[1], moments(x, 1)[1]
    return x / jnp.maximum(jnp.sqrt(batch + 1e-5), v * x + jnp.sqrt(own + 1e-5)) * scale + bias


def s0(x, v, scale, bias):
    parts = x.reshape(*x.shape[:-1], 2, -1)
    var = jnp.broadcast_to(moments(parts, (1, 3))[1], parts.shape).reshape(x.shape)
    return x / (1 + jnp.exp(-v * x)) / jnp.sqrt(var + 1e-5) * scale + bias


def whitened(x, scale, bias):
    size = x.shape[-1] // 2
    rows = (x - x.mean((0, 1))).reshape(-1, 2, size)
    sigma = jnp.einsum('rgc,rgd->gcd', rows, rows) / len(rows) + 1e-5 * jnp.eye(size)
    trace = jnp.trace(sigma, axis1=1, axis2=2)[:, None, None]
    p = jnp.broadcast_to(jnp.eye(size), sigma.shape)
    for _ in range(5):
        p = (3 * p - p @ p @ p @ sigma / trace) / 2
    return jnp.einsum('rgc,gcd->rgd', rows, p / jnp.sqrt(trace)).reshape(x.shape) * scale + bias


@dataclass(frozen=True)
class Case:
    """A kernel of x and parameters; its definition in JAX and in numpy; and the error that it may have."""

    name: str
    call: Callable[..., Any]
    definition: Callable[..., Any]
    reference: Callable[..., Any]
    parameters: tuple[str, ...] = ()


AFFINE = ('scale', 'bias')
CASES = [
    Case(
        'local_response_norm',
        lambda x, **k: F.local_response_norm(x, 4, **k),
        local_response,
        lambda x: ref.local_response_norm(x, 4),
    ),
    Case('unit_norm', F.unit_norm, scaled, ref.unit_norm),
    Case('scale_norm', F.scale_norm, scaled, ref.scale_norm, ('number',)),
    Case('global_response_norm', F.global_response_norm, global_response, ref.global_response_norm, AFFINE),
    Case(
        'filter_response_norm',
        F.filter_response_norm,
        filter_response,
        ref.filter_response_norm,
        (*AFFINE, 'threshold', 'extra'),
    ),
    Case('evonorm_b0_fit', lambda *a, **k: F.evonorm_b0_fit(*a, **k)[0], b0, ref.evonorm_b0_fit, ('v', *AFFINE)),
    Case(
        'evonorm_s0',
        lambda *a, **k: F.evonorm_s0(*a, num_groups=2, **k),
        s0,
        lambda *a: ref.evonorm_s0(*a, num_groups=2),
        ('v', *AFFINE),
    ),
    Case(
        'iterative_norm_fit',
        lambda *a, **k: F.iterative_norm_fit(*a, num_groups=2, **k)[0],
        whitened,
        lambda *a: ref.iterative_norm_fit(*a, num_groups=2)[0],
        AFFINE,
    ),
]
each = pytest.mark.parametrize('case', CASES, ids=lambda c: c.name)
NAMES = {c.name: c for c in CASES}


def inputs(case, mean=0.5, dtype='float32', shape=SHAPE, seed=3):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(mean, 1, shape), dtype)
    values = {
        'scale': rng.normal(1, 0.2, shape[-1]),
        'bias': rng.normal(0, 0.2, shape[-1]),
        'v': rng.normal(1, 0.2, shape[-1]),
        'threshold': rng.normal(-0.5, 0.2, shape[-1]),
        'extra': rng.normal(0, 0.2, shape[-1]),
        'number': np.asarray(5.5),
    }
    return x, *(jnp.asarray(values[n], dtype) for n in case.parameters)


def wide(arrays):
    return [np.asarray(a, np.float64) for a in arrays]


def error(got, expected):
    return np.abs(np.asarray(got, np.float64) - expected).max() / np.abs(expected).max()


@each
def test_narrow_dtypes(case):
    arrays = inputs(case, dtype='bfloat16')
    y = quick(case.call)(*arrays)
    assert y.dtype == jnp.bfloat16
    assert error(y, case.reference(*wide(arrays))) <= 2.01**-8


def at_any_mean(case, seeds):
    both = [
        jit(lambda g, *a, f=f: (lambda y, pull: (y, pull(g)))(*jax.vjp(f, *a)))
        for f, jit in ((case.call, jax.jit), (case.definition, quick))
    ]
    for mean, seed in itertools.product((1e0, 1e2, 1e4, 1e6), seeds):
        # not the numbers that x is made of: along x, all but nothing of a gradient is left
        g = jnp.asarray(np.random.default_rng(1000 + seed).normal(size=SHAPE), jnp.float32)
        arrays = inputs(case, mean, seed=seed)
        y, slopes = both[0](g, *arrays)
        expected, expected_slopes = both[1](*(a.astype(jnp.float64) for a in (g, *arrays)))
        assert y.dtype == jnp.float32
        assert expected.dtype == jnp.float64
        assert error(expected, case.reference(*wide(arrays))) <= 1e-9
        assert error(y, expected) <= 2e-7
        assert error(slopes[0], expected_slopes[0]) <= 2e-7
        for got, wanted in zip(slopes[1:], expected_slopes[1:], strict=True):
            # sums over as many terms as there are round as sqrt(n) at the worst
            largest = max(np.abs(wanted).max(), 1e-6)
            assert np.abs(np.asarray(got, np.float64) - wanted).max() <= largest * 2.0**-23 * np.sqrt(g.size)


@each
def test_value_and_gradient_at_any_mean(case, x64):
    at_any_mean(case, range(3, 10))


@pytest.mark.slow
def test_derivatives_of_every_kind(x64):
    case = NAMES['scale_norm']
    transforms.check(
        lambda *a: jnp.sin(case.call(*a)).sum(),
        lambda *a: jnp.sin(case.definition(*a)).sum(),
        *inputs(case, dtype='float64', shape=(2, 2, 4)),
    )


@pytest.mark.slow
@each
def test_derivatives(case, x64):
    # the same rule for all, JAX's own where moments are kept: its transformations in some orders
    if case.name == 'scale_norm':
        pytest.skip('every transformation is tested above')
    arrays = inputs(case, dtype='float64', shape=(3, 1, 2) if case.name == 'iterative_norm_fit' else (2, 2, 4))
    along = tuple(0.3 * a for a in arrays)
    slope_of = lambda f: jax.grad(lambda *a: jnp.sin(f(*a)).sum(), tuple(range(len(arrays))))

    @quick
    def ours():
        slope = slope_of(case.call)
        forward = jax.jvp(slope, arrays, along)
        backward = jax.vjp(slope, *arrays)[1](along)  # the hessian is symmetric
        return forward, backward, jax.vmap(slope)(*(jnp.stack([0.5 * a, a]) for a in arrays))

    slope, bend = quick(lambda: jax.jvp(slope_of(case.definition), arrays, along))()
    forward, backward, mapped = ours()
    transforms.same(forward, (slope, bend), 1e-9)
    transforms.same(backward, bend, 1e-9)
    transforms.same([m[1] for m in mapped], slope, 1e-9)


@each
def test_masked_is_sliced(case, x64):
    x, *rest = inputs(case, 2.0, 'float64')
    channels = case.name in ('local_response_norm', 'unit_norm', 'scale_norm')
    where = (jnp.arange(32) < 20) if channels else (jnp.arange(16) < 11)[:, None]
    keep = (..., slice(20)) if channels else (slice(None), slice(11))

    @quick
    def both(x):
        results = []
        for v, options in ((jnp.where(where, x, jnp.nan), {'where': where}), (x[keep], {})):
            y, pull = jax.vjp(lambda v, o=options: case.call(v, *rest, **o), v)
            results.append((y, pull(jnp.ones_like(y) + jnp.nan_to_num(v))[0]))
        return results

    (y, dx), (sliced, slope) = both(x)
    np.testing.assert_allclose(y[keep], sliced, 1e-12, 1e-12)
    np.testing.assert_allclose(dx[keep], slope, 1e-9, 1e-11)
    assert (jnp.where(where, 0, y) == 0).all() and (jnp.where(where, 0, dx) == 0).all()


@each
def test_where_nothing_is_there(case):
    x, *rest = inputs(case)
    options = {} if case.name == 'local_response_norm' else {'epsilon': 0.0}

    @quick
    def all_of_it(x, where):
        y, pull = jax.vjp(lambda *a: case.call(*a, where=where, **options), x, *rest)
        return y, pull(jnp.ones_like(y))

    y, slopes = all_of_it(jnp.full_like(x, jnp.nan), jnp.zeros((1, 1, 1), bool))
    assert (y == 0).all() and all((s == 0).all() for s in slopes)
    y, slopes = all_of_it(jnp.zeros_like(x), jnp.ones((1, 1, 1), bool))
    zero = case.reference(np.zeros((2, 2, 32)), *wide(rest))[0, 0] if 'bias' in case.parameters else 0
    np.testing.assert_allclose(y, np.broadcast_to(zero, SHAPE), atol=1e-6)
    assert all(jnp.isfinite(s).all() for s in slopes)
    assert jnp.isfinite(all_of_it(jnp.full_like(x, 3.7), jnp.ones((1, 1, 1), bool))[0]).all()


@each
def test_sizes(case):
    if case.name == 'evonorm_s0':
        pytest.skip('its gate is at 1: not homogeneous')
    x, *rest = inputs(case)
    options = {'k': 0.0, 'beta': 0.5} if case.name == 'local_response_norm' else {'epsilon': 0.0}
    if case.name in ('filter_response_norm', 'global_response_norm'):
        rest = rest[:1]
    g = jnp.asarray(np.random.default_rng(5).normal(size=SHAPE), jnp.float32)
    f = jax.jit(lambda x: (lambda y, pull: (y, pull(g)[0]))(*jax.vjp(lambda x: case.call(x, *rest, **options), x)))
    exact, slope = wide(f(x))
    keeps_unit = case.name == 'global_response_norm'
    any_size = case.name in ('local_response_norm', 'unit_norm', 'scale_norm', 'global_response_norm')
    for size in (1e17, 1e-17, *((1e30, 1e-30) if any_size else ())):
        y, dx = wide(f(x * size))
        assert error(y / (size if keeps_unit else 1), exact) <= 1e-4
        assert error(dx * (1 if keeps_unit else size), slope) <= 1e-4


@each
def test_saves_its_input_and_a_few_numbers_a_statistic(case):
    arrays = inputs(case)
    saved = [a for a in jax.tree.leaves(jax.vjp(case.call, *arrays)[1]) if isinstance(a, jax.Array)]
    statistics = {
        'local_response_norm': 96,
        'unit_norm': 2 * 96,
        'scale_norm': 2 * 96,
        'global_response_norm': 6 * 32 + 6,
        'filter_response_norm': 6 * 32,
        'evonorm_b0_fit': 4 * (6 * 32 + 32),
        'evonorm_s0': 4 * 6 * 2,
        'iterative_norm_fit': 3 * 32 + 2 * 16 * 16,
    }
    assert sum(a.size for a in saved) <= sum(a.size for a in arrays) + statistics[case.name]


# Curves in place of a norm.

CURVES = {
    'dynamic_tanh': (F.dynamic_tanh, lambda x, a, s, b: s * jnp.tanh(a * x) + b, ref.dynamic_tanh, ()),
    'dynamic_erf': (
        F.dynamic_erf,
        lambda x, a, t, s, b: s * jax.scipy.special.erf(a * x + t) + b,
        ref.dynamic_erf,
        (jnp.asarray(0.25),),
    ),
}
curve = pytest.mark.parametrize('name', list(CURVES))


@curve
def test_curves_and_their_derivatives(name, x64):
    ours, definition, reference, shift = CURVES[name]
    rng = np.random.default_rng(0)
    x, scale, bias = (jnp.asarray(rng.normal(size=s)) for s in ((3, 4), 4, 4))
    inner = (jnp.asarray(0.7), *(s.astype(float) for s in shift))
    np.testing.assert_allclose(ours(x, *inner, scale, bias), reference(*wide((x, *inner, scale, bias))), 1e-14, 1e-14)
    np.testing.assert_allclose(ours(x), reference(np.asarray(x)), 1e-14)
    first = lambda *a: ours(*a, axis=0)
    np.testing.assert_allclose(first(x.T, *inner, scale, bias), ours(x, *inner, scale, bias).T, 1e-14, 1e-14)
    where = jnp.asarray([[True], [False], [True]])
    y, pull = jax.vjp(lambda v: ours(v, *inner, scale, bias, where=where), jnp.where(where, x, jnp.nan))
    assert (y[1] == 0).all() and (pull(jnp.ones_like(y))[0][1] == 0).all()
    saved = [a for a in jax.tree.leaves(jax.vjp(ours, x, *inner, scale, bias)[1]) if isinstance(a, jax.Array)]
    assert sum(a.size > 4 for a in saved) == 1  # x, once
    arguments = (x[:2, :2], *inner, scale[:2], bias[:2])
    every = tuple(range(len(arguments)))

    def derivatives(f):
        loss = lambda *a: jnp.sin(f(*a)).sum()
        slope = jax.grad(loss, every)
        return jax.jvp(slope, arguments, arguments), jax.vmap(slope)(
            *(jnp.stack([a, -2 * a]) for a in arguments)
        )  # fmt: skip

    got, exact = (quick(lambda f=f: derivatives(f))() for f in (ours, definition))
    transforms.same(got, exact, 1e-11)


@curve
@pytest.mark.parametrize('dtype', ['float32', 'float64', 'bfloat16'])
def test_curves_in_units_of_the_last_place(name, dtype, x64):
    ours, shift = CURVES[name][0], 0.0 if name == 'dynamic_tanh' else 0.25
    grid = np.concatenate([np.linspace(-30, 30, 400), np.linspace(-3, 3, 400), np.geomspace(1e-20, 1, 60)])
    x = jnp.asarray(grid, dtype)
    inner = {'alpha': 0.5} if name == 'dynamic_tanh' else {'alpha': 0.5, 'shift': shift}
    f = lambda v: ours(v, **inner)
    got = jax.jit(lambda v: (f(v), jax.vmap(jax.grad(f))(v)))(x)
    limit = {'float32': 4, 'float64': 8, 'bfloat16': 0.6}[dtype]
    with mp.workdps(50):
        z = [mp.mpf(float(v)) / 2 + shift for v in np.asarray(x, np.float64)]
        if name == 'dynamic_tanh':
            exact = [mp.tanh(v) for v in z], [mp.sech(v) ** 2 / 2 for v in z]
        else:
            exact = [mp.erf(v) for v in z], [mp.exp(-v * v) / mp.sqrt(mp.pi) for v in z]
        for g, e in zip(got, exact, strict=True):
            assert g.dtype == dtype
            assert np.max(ulps(g, e, dtype)) <= limit


@curve
def test_curves_at_the_ends(name):
    f = CURVES[name][0]
    x = jnp.asarray([-jnp.inf, -1e38, 0.0, 1e38, jnp.inf])
    assert f(x).tolist() == [-1, -1, 0, 1, 1]
    slope = jax.vmap(jax.grad(f))(x)
    assert slope[jnp.asarray([0, 1, 3, 4])].tolist() == [0, 0, 0, 0]
    assert jnp.isnan(f(jnp.nan))
    by_alpha = jax.vmap(jax.grad(f, 1), (0, None))(x, jnp.asarray(0.5))
    assert (by_alpha == 0).all()


# What is particular.


@pytest.mark.parametrize('exponent', [-0.75, -1.75, 0.5, 3.1])
def test_powers_are_rounded_once(exponent):
    rng = np.random.default_rng(0)
    x = np.float32(np.concatenate([np.exp(rng.uniform(-12, 12, 3000)), 1 + rng.normal(0, 1e-4, 500)]))
    rest = np.float32(x * rng.uniform(-(2.0**-25), 2.0**-25, x.shape))
    got = sum(np.asarray(part, np.longdouble) for part in quick(lambda *a: elementary.power(*a, exponent))(x, rest))
    wanted = (np.asarray(x, np.longdouble) + rest) ** np.longdouble(exponent)
    # before the last rounding, of 2**-24: the error of the exponential, and that of the logarithm times the exponent
    assert (np.abs(got - wanted) / wanted).max() <= 2.0**-26 * (1 + abs(exponent))


@pytest.mark.parametrize('options', [(0.0, 0.75, 2.0), (0.3, -1.0, 0.1), (1e-20, 0.75, 1.0)])
def test_local_response_norm_with_any_numbers(options, x64):
    x = jnp.asarray(np.random.default_rng(0).normal(0, 3, (2, 3, 8)))
    alpha, beta, k = options

    def plain(v):
        padded = jnp.pad(v * v, [(0, 0), (0, 0), (1, 1)])
        total = padded[..., :-2] + padded[..., 1:-1] + padded[..., 2:]
        return v * (k + alpha / 3 * total) ** -beta

    ours = lambda v: F.local_response_norm(v, 3, alpha, beta, k)
    np.testing.assert_allclose(ours(x), plain(x), 1e-12)
    slope = lambda f: quick(jax.grad(lambda v: jnp.sin(f(v)).sum()))
    bend = lambda f: quick(lambda v: jax.jvp(jax.grad(lambda v: jnp.sin(f(v)).sum()), (v,), (jnp.cos(v),))[1])
    for of in (slope, bend):
        np.testing.assert_allclose(of(ours)(x), of(plain)(x), 1e-9, 1e-12)
    small = x.astype(jnp.float32)
    straight = lambda f, v: quick(jax.grad(lambda v: (f(v) * jnp.cos(jnp.arange(v.size).reshape(v.shape))).sum()))(v)
    assert error(straight(ours, small), straight(plain, small.astype(jnp.float64))) <= 5e-7


needs_torch = pytest.mark.skipif(importlib.util.find_spec('torch') is None, reason='torch is not installed')


@needs_torch
@pytest.mark.parametrize('size', [1, 4])
def test_local_response_norm_is_that_of_torch(size):
    import torch

    x = np.random.default_rng(0).normal(0, 30, (2, 7, 3, 3)).astype(np.float32)
    theirs = torch.nn.functional.local_response_norm(torch.from_numpy(x), size, 0.1, 0.6, 2.0).numpy()
    np.testing.assert_allclose(F.local_response_norm(x, size, 0.1, 0.6, 2.0, axis=1), theirs, 1e-6)
    np.testing.assert_allclose(nn.LocalResponseNorm(size, 0.1, 0.6, 2.0, axis=1)(x), theirs, 1e-6)


@needs_torch
def test_unit_norm_is_that_of_torch():
    import torch

    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    x[1] = 0
    x[2] = 1e-14
    ours, theirs = jnp.asarray(x), torch.tensor(x, requires_grad=True)
    torch.nn.functional.normalize(theirs).sum().backward()
    np.testing.assert_allclose(F.unit_norm(ours), torch.nn.functional.normalize(theirs).detach().numpy(), 1e-6)
    np.testing.assert_allclose(jax.grad(lambda v: F.unit_norm(v).sum())(ours), theirs.grad.numpy(), 1e-5, 1e-7)


def test_given_statistics(x64):
    x, v, scale, bias = inputs(NAMES['evonorm_b0_fit'], dtype='float64')
    y, var = F.evonorm_b0_fit(x, v, scale, bias)
    np.testing.assert_allclose(F.evonorm_b0(x, var, v, scale, bias), y, 1e-13, 1e-13)
    np.testing.assert_allclose(y, ref.evonorm_b0(*wide((x, var, v, scale, bias))), 1e-12, 1e-13)
    y, mean, whitening = F.iterative_norm_fit(x, scale, bias, group_size=8)
    expected = ref.iterative_norm_fit(*wide((x, scale, bias)), num_groups=4)
    for got, wanted in zip((y, mean, whitening), expected, strict=True):
        np.testing.assert_allclose(got, wanted, 1e-11, 1e-12)
    np.testing.assert_allclose(F.iterative_norm(x, mean, whitening, scale, bias), y, 1e-11, 1e-12)
    empty = F.iterative_norm_fit(x, num_groups=4, where=jnp.zeros((1, 1, 1), bool))
    assert (empty[0] == 0).all() and jnp.isnan(empty[1]).all() and jnp.isnan(empty[2]).all()
    assert jnp.isnan(F.evonorm_b0_fit(x, v, where=jnp.zeros((1, 1, 1), bool))[1]).all()


def test_whitening_whitens():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(500, 4)) @ rng.normal(size=(4, 4)) + 7, jnp.float32)
    y, _, _ = F.iterative_norm_fit(x, num_groups=1, num_iterations=15)
    np.testing.assert_allclose(y.T @ y / 500, jnp.eye(4), atol=1e-3)


@pytest.mark.parametrize('name', ['global_response_norm', 'filter_response_norm', 'evonorm_s0', 'evonorm_b0_fit'])
def test_without_positions_and_channels_first(name, x64):
    case = NAMES[name]
    x, *rest = inputs(case, dtype='float64', shape=(5, 4))
    image = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 3, 4)))
    flat, first = quick(lambda: (case.call(x, *rest), case.call(jnp.moveaxis(image, -1, 1), *rest, axis=1)))()
    np.testing.assert_allclose(flat, case.reference(*wide((x[:, None], *rest)))[:, 0], 1e-12, 1e-13)
    np.testing.assert_allclose(jnp.moveaxis(first, 1, -1), case.reference(*wide((image, *rest))), 1e-12, 1e-13)


def test_a_learned_epsilon_and_no_threshold(x64):
    x, scale, bias, _, extra = inputs(NAMES['filter_response_norm'], dtype='float64')
    y = F.filter_response_norm(x, scale, bias, learned_epsilon=extra)
    np.testing.assert_allclose(y, ref.filter_response_norm(*wide((x, scale, bias)), -np.inf, np.asarray(extra)), 1e-12)


def test_units():
    x, v, scale, bias = inputs(NAMES['evonorm_b0_fit'], 3.0)
    for f in (F.unit_norm, F.scale_norm, F.filter_response_norm):
        np.testing.assert_array_equal(f(x * u.mV), f(x))
    y = F.global_response_norm(x * u.mV, scale, bias * u.mV)
    assert y.unit == u.mV
    np.testing.assert_array_equal(y.mantissa, F.global_response_norm(x, scale, bias))
    y, var = F.evonorm_b0_fit(x * u.mV, v)
    assert var.unit == u.mV**2 and isinstance(y, jax.Array)
    np.testing.assert_allclose(F.evonorm_b0(x * u.mV, var, v), y, 1e-6)
    y, mean, whitening = F.iterative_norm_fit(x * u.mV, num_groups=2)
    assert (mean.unit, whitening.unit.dim) == (u.mV, (u.mV**-1).dim) and isinstance(y, jax.Array)
    np.testing.assert_allclose(F.iterative_norm(x * u.mV, mean, whitening), y, 1e-5, 1e-6)
    extra = F.filter_response_norm(x * u.mV, learned_epsilon=jnp.asarray(2.0) * u.mV**2)
    np.testing.assert_array_equal(extra, F.filter_response_norm(x, learned_epsilon=jnp.asarray(2.0)))
    for f in (
        F.dynamic_tanh,
        F.dynamic_erf,
        lambda x: F.evonorm_s0(x, v, num_groups=2),
        lambda x: F.local_response_norm(x, 3),
    ):
        with pytest.raises(TypeError, match='x must be dimensionless, got a Quantity in mV'):
            f(x * u.mV)


@pytest.mark.parametrize('name', ['global_response_norm', 'evonorm_b0_fit', 'iterative_norm_fit'])
def test_split_over_a_named_axis_is_the_whole(name, x64):
    case = NAMES[name]
    x, *rest = inputs(case, dtype='float64', shape=(4, 6, 4))
    axis = 1 if name == 'global_response_norm' else 0
    parts = lambda t: jnp.stack(jnp.split(t, 2, axis))

    def split(x):
        f = jax.vmap(lambda v: case.call(v, *rest, axis_name='devices'), axis_name='devices')
        return jnp.concatenate(list(f(parts(x))), axis)

    @quick
    def both(x):
        loss = lambda f: jax.grad(lambda v: jnp.sin(f(v)).sum())(x)
        whole = lambda v: case.call(v, *rest)
        return split(x), whole(x), loss(split), loss(whole)

    a, b, da, db = both(x)
    np.testing.assert_allclose(a, b, 1e-12, 1e-12)
    np.testing.assert_allclose(da, db, 1e-9, 1e-11)


def test_groups_of_devices():
    x = (
        jnp.asarray(np.random.default_rng(0).normal(size=(4, 3, 5)), jnp.float32)
        * jnp.asarray([1e30, 1, 1e-30, 1])[:, None, None]
    )
    f = jax.vmap(lambda v: F.unit_norm(v, axis_name='d', axis_index_groups=((0, 1), (2, 3))), axis_name='d')
    expected = [F.unit_norm(jnp.concatenate([x[i], x[i + 1]], -1)) for i in (0, 2)]
    np.testing.assert_allclose(f(x), jnp.concatenate([jnp.stack([e[:, :5], e[:, 5:]]) for e in expected]), 1e-6)


# Modules.

LAYERS = {
    'LocalResponseNorm': (lambda: nn.LocalResponseNorm(5), lambda x, w: ref.local_response_norm(x, 5), None),
    'UnitNorm': (lambda: nn.UnitNorm(), lambda x, w: ref.unit_norm(x), None),
    'ScaleNorm': (lambda: nn.ScaleNorm(8), lambda x, w: ref.scale_norm(x, **w), {'scale': ()}),
    'GlobalResponseNorm': (
        lambda: nn.GlobalResponseNorm((4, 4, 8), scale_init=0.5),
        lambda x, w: ref.global_response_norm(x, **w),
        {'scale': (1, 1, 8), 'bias': (1, 1, 8)},
    ),
    'FilterResponseNorm': (
        lambda: nn.FilterResponseNorm(8, learn_epsilon=True),
        lambda x, w: ref.filter_response_norm(x, **w),
        dict.fromkeys(('scale', 'bias', 'threshold', 'learned_epsilon'), (8,)),
    ),
    'FilterResponseNorm plain': (
        lambda: nn.FilterResponseNorm((8, 4, 4), 0, use_threshold=False, use_bias=False),
        lambda x, w: np.moveaxis(
            ref.filter_response_norm(np.moveaxis(x, 1, -1), **{n: v.ravel() for n, v in w.items()}), -1, 1
        ),
        {'scale': (8, 1, 1)},
    ),
    'EvoNormS0': (
        lambda: nn.EvoNormS0(8, num_groups=None, group_size=4),
        lambda x, w: ref.evonorm_s0(x, num_groups=2, **w),
        dict.fromkeys(('scale', 'bias', 'v'), (8,)),
    ),
    'EvoNormB0': (
        lambda: nn.EvoNormB0((4, 4, 8)),
        lambda x, w: ref.evonorm_b0_fit(x, **w),
        dict.fromkeys(('scale', 'bias', 'v'), (1, 1, 8)),
    ),
    'DynamicTanh': (
        lambda: nn.DynamicTanh(8, alpha_init=0.8),
        lambda x, w: ref.dynamic_tanh(x, **w),
        {'alpha': (), 'scale': (8,), 'bias': (8,)},
    ),
    'DynamicErf': (
        lambda: nn.DynamicErf(normalized_shape=(4, 8)),
        lambda x, w: ref.dynamic_erf(x, **w),
        {'alpha': (), 'shift': (), 'scale': (4, 8), 'bias': (4, 8)},
    ),
    'IterNorm': (
        lambda: nn.IterNorm(8, num_groups=2),
        lambda x, w: ref.iterative_norm_fit(x, num_groups=2, **w)[0],
        {'scale': (8,), 'bias': (8,)},
    ),
}


def batch(seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(1, 2, (2, 4, 4, 8)), jnp.float32)


@pytest.mark.parametrize('name', list(LAYERS))
def test_layer_is_its_function(name):
    make, function, shapes = LAYERS[name]
    layer, x = make(), batch()
    x = jnp.moveaxis(x, -1, 1) if 'plain' in name else x
    before = pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)
    weight = next(iter(layer.states(brainstate.ParamState).values())).value if shapes else {}
    assert {n: w.shape for n, w in weight.items()} == (shapes or {})
    y = layer(x, fit=True)
    expected = function(np.asarray(x, np.float64), {n: np.asarray(v, np.float64) for n, v in weight.items()})
    np.testing.assert_allclose(y, expected, 1e-5, 1e-5)
    for other in before:
        np.testing.assert_array_equal(other(x, fit=True), y)
        np.testing.assert_array_equal(other(x, fit=False), layer(x, fit=False))
    assert type(layer).__name__ in repr(layer)
    where = jnp.arange(4)[:, None] < 3
    dirty = jnp.where(where, x, jnp.nan)
    assert jnp.isfinite(layer(dirty, where, fit=True)).all()


RUNNING = {
    'EvoNormB0': (lambda **k: nn.EvoNormB0(8, **k), {'running_var': lambda x: x.var((0, 1, 2))}),
    'IterNorm': (
        lambda **k: nn.IterNorm(8, num_groups=2, **k),
        {
            'running_mean': lambda x: x.mean((0, 1, 2)),
            'running_whitening': lambda x: F.iterative_norm_fit(x, num_groups=2)[2],
        },
    ),
}
running = pytest.mark.parametrize('name', list(RUNNING))


@running
def test_running_statistics(name):
    make, statistics = RUNNING[name]
    layer, x = make(momentum=0.9), batch()
    states = {n: getattr(layer, n) for n in statistics}
    assert all(isinstance(s, brainstate.BatchState) for s in states.values())
    first = {n: s.value for n, s in states.items()}
    for fit, kept in ((False, 1), (True, 0.9)):
        layer(x, fit=fit)
        for n, s in states.items():
            np.testing.assert_allclose(s.value, kept * first[n] + (1 - kept) * statistics[n](x), 1e-5, 1e-5)
            assert s.value.dtype == jnp.float32
    before = {n: s.value for n, s in states.items()}
    where = jnp.zeros((1, 1, 1, 1), bool)
    for bad, mask in (
        (x.at[0, 1, 2, 3].set(jnp.nan), None),
        (x.at[0, 1, 2, 3].set(jnp.inf), None),
        (x[:0], None),
        (x, where),
    ):
        layer(bad, mask, fit=True)
    for n, s in states.items():
        np.testing.assert_array_equal(s.value, before[n])
    settled = make(momentum=0.0)
    settled(x.astype(jnp.bfloat16), fit=True)
    assert all(getattr(settled, n).value.dtype == jnp.float32 for n in statistics)
    y = settled(x, fit=True)
    np.testing.assert_allclose(settled(x, fit=False), y, 1e-5, 1e-5)  # it has that batch's statistics


@running
def test_phases_and_jit(name):
    make, statistics = RUNNING[name]
    layer, x = make(), batch()
    with pytest.raises(ValueError, match=f'{name}: fit must say whether the layer fits or evaluates'):
        layer(x)
    apply = jaxnorm.jit(layer)
    with brainstate.environ.context(fit=True):
        fitted = apply(x)
        moved = [getattr(layer, n).value for n in statistics]
        layer.frozen = True
        assert not jnp.array_equal(apply(x), fitted)
        layer.frozen = False
    with brainstate.environ.context(fit=False):
        assert not jnp.array_equal(apply(x), fitted)
    for n, value in zip(statistics, moved, strict=True):
        np.testing.assert_array_equal(getattr(layer, n).value, value)


@running
def test_running_statistics_carry_the_unit(name):
    make, statistics = RUNNING[name]
    layer, plain, x = make(momentum=0.5), make(momentum=0.5), batch()
    for seed in (0, 1):
        layer(batch(seed) * u.mV, fit=True)
        plain(batch(seed), fit=True)
    power = {'running_var': 2, 'running_mean': 1, 'running_whitening': -1}
    for n in statistics:
        assert getattr(layer, n).value.unit.dim == (u.mV ** power[n]).dim
        np.testing.assert_allclose(getattr(layer, n).value.mantissa, getattr(plain, n).value, 1e-6)
    np.testing.assert_allclose(layer(x * u.mV, fit=False), plain(x, fit=False), 1e-5, 1e-5)


FOLLOWED = {
    'IterNorm': lambda **k: nn.IterNorm(8, num_groups=2, use_bias=False, **k),
    'ScaleNorm': lambda **k: nn.ScaleNorm(8, **k),
    'UnitNorm': lambda **k: nn.UnitNorm(**k),
    'LocalResponseNorm': lambda **k: nn.LocalResponseNorm(3, **k),
    'GlobalResponseNorm': lambda **k: nn.GlobalResponseNorm(8, scale_init=0.3, **k),
    'FilterResponseNorm': lambda **k: nn.FilterResponseNorm(8, threshold_init=-0.5, learn_epsilon=True, **k),
    'EvoNormB0': lambda **k: nn.EvoNormB0(8, **k),
    'EvoNormS0': lambda **k: nn.EvoNormS0(8, num_groups=2, **k),
    'DynamicTanh': lambda **k: nn.DynamicTanh(8, **k),
    'DynamicErf': lambda **k: nn.DynamicErf(8, **k),
}


@pytest.mark.parametrize('name', list(FOLLOWED))
def test_an_activation_follows(name):
    x, where = batch(), jnp.arange(4)[:, None] < 3
    plain, followed = FOLLOWED[name](), FOLLOWED[name](activation='exponential')
    assert 'exponential' in repr(followed)
    for fit in (True, False):
        expected = jnp.where(where, jnp.exp(plain(x, where, fit=fit)), 0)
        np.testing.assert_allclose(followed(x, where, fit=fit), expected, 1e-6)
    call = lambda v: followed(v, fit=False)
    assert sum(a.size == x.size for a in jax.tree.leaves(jax.vjp(call, x)[1]) if isinstance(a, jax.Array)) == 1
    after = FOLLOWED[name](activation=nn.Exponential())  # a module is called after
    np.testing.assert_allclose(after(x, where, fit=True), jnp.where(where, jnp.exp(plain(x, where, fit=True)), 0), 1e-6)


@pytest.mark.parametrize('other', [jnp.inf, jnp.nan, 1e30])
def test_a_response_is_that_of_its_own_segment(other):
    x, ids, ones = jnp.ones((1, 4, 2)).at[0, 0].set(other), jnp.asarray([0, 0, 1, 1])[None, :, None], jnp.ones(2)
    f = lambda x, ids=None: F.global_response_norm(x, ones, segment_ids=ids)
    np.testing.assert_array_equal(f(x, ids)[:, 2:], f(x[:, 2:]))
    slope = jax.grad(lambda x: f(x, ids)[:, 2:].sum())(x)[:, 2:]
    np.testing.assert_array_equal(slope, jax.grad(lambda x: f(x).sum())(x[:, 2:]))


def test_an_activation_of_what_keeps_a_unit():
    x = batch() * u.mV
    assert nn.GlobalResponseNorm(8)(x).unit == u.mV
    with pytest.raises(TypeError, match='global_response_norm: x must be dimensionless, got a Quantity in mV'):
        nn.GlobalResponseNorm(8, activation='relu')(x)


GIVEN = {
    'EvoNormB0': (nn.EvoNormB0, True),
    'EvoNormS0': (lambda n, **k: nn.EvoNormS0(n, num_groups=2, **k), True),
    'IterNorm': (nn.IterNorm, True),
    'GlobalResponseNorm': (nn.GlobalResponseNorm, True),
    'FilterResponseNorm': (nn.FilterResponseNorm, True),
    'DynamicTanh': (nn.DynamicTanh, True),
    'DynamicErf': (nn.DynamicErf, True),
    'ScaleNorm': (nn.ScaleNorm, False),
}


@pytest.mark.parametrize('name', list(GIVEN))
def test_scale_and_bias_of_the_call(name):
    make, biased = GIVEN[name]
    rng, x = np.random.default_rng(1), batch()
    values = {n: jnp.asarray(rng.normal(size=8), jnp.float32) for n in (('scale', 'bias') if biased else ('scale',))}
    own, bare = make(8), make(8, **{f'use_{n}': False for n in values})
    state = getattr(own, own._parameters)
    state.value = {**state.value, **values}
    np.testing.assert_allclose(bare(x, fit=True, **values), own(x, fit=True), 1e-6, 1e-6)
    with pytest.raises(ValueError, match=f'{name}: scale must be None where the layer has one of its own'):
        own(x, fit=True, scale=values['scale'])


def test_samples_without_a_batch():
    x = batch()
    for layer in (
        nn.GlobalResponseNorm((4, 4, 8), scale_init=1.0),
        nn.FilterResponseNorm((4, 4, 8)),
        nn.EvoNormB0((4, 4, 8)),
    ):
        np.testing.assert_allclose(layer(x[0], fit=False), layer(x, fit=False)[0], 1e-6, 1e-6)


def test_initial_values():
    x = batch()
    np.testing.assert_array_equal(nn.GlobalResponseNorm(8)(x), x)
    assert nn.ScaleNorm((4, 9)).scale.value['scale'] == 3
    assert nn.ScaleNorm(normalized_shape=(4, 9)).scale.value['scale'] == 6
    assert nn.UnitNorm(dim=1).axis == 1
    assert nn.FilterResponseNorm(8, learn_epsilon=True).weight.value['learned_epsilon'][0] == np.float32(1e-4)


X = jnp.ones((2, 3, 4))
ERRORS = [
    (lambda: F.local_response_norm(X, 0), 'local_response_norm: size must be at least 1, got 0'),
    (lambda: F.local_response_norm(X, 3, -1.0), 'local_response_norm: alpha must be a finite number at least 0'),
    (lambda: F.unit_norm(X, epsilon=-1.0), 'unit_norm: epsilon must be a finite number at least 0, got -1.0'),
    (lambda: F.unit_norm(X, axis=3), 'unit_norm: axis must lie in'),
    (lambda: F.scale_norm(X, jnp.ones(3)), 'scale_norm: scale must have the shape'),
    (lambda: F.global_response_norm(X[0, 0]), 'global_response_norm: x must have a batch axis and a channel axis'),
    (lambda: F.filter_response_norm(X, axis=0), 'filter_response_norm: axis must not be 0, which is the batch'),
    (lambda: F.filter_response_norm(X, threshold=jnp.ones(5)), 'filter_response_norm: threshold must have the shape'),
    (lambda: F.evonorm_b0_fit(X[:1, :1], jnp.ones(4)), 'evonorm_b0_fit: x must hold more than one value a channel'),
    (lambda: F.evonorm_b0_fit(X, jnp.ones(5)), 'evonorm_b0_fit: v must have the shape'),
    (lambda: F.evonorm_s0(X, jnp.ones(4), num_groups=3), 'evonorm_s0: num_groups must divide the 4 channels'),
    (lambda: F.evonorm_s0(X, jnp.ones(4)), 'evonorm_s0: num_groups or group_size must be given'),
    (lambda: F.dynamic_tanh(X, 'a'), 'dynamic_tanh: alpha must be an array, got str'),
    (lambda: F.dynamic_erf(X, shift=jnp.ones(5)), 'dynamic_erf: shift must have the shape'),
    (lambda: F.iterative_norm_fit(X, num_groups=3), 'iterative_norm_fit: num_groups must divide the 4 channels'),
    (lambda: F.iterative_norm_fit(X, num_groups=1, where=X > 0), 'iterative_norm_fit: where must be the same for all'),
    (lambda: F.iterative_norm_fit(X[:1, :1], num_groups=1), 'iterative_norm_fit: x must hold more than one value'),
    (lambda: F.iterative_norm_fit(X, num_groups=1, num_iterations=0), 'iterative_norm_fit: num_iterations must be at'),
    (lambda: F.iterative_norm(X, jnp.ones(3), jnp.ones((1, 4, 4))), 'iterative_norm: mean must have the shape'),
    (lambda: F.iterative_norm(X, jnp.ones(4), jnp.ones((2, 4, 4))), 'iterative_norm: whitening must have the shape'),
    (lambda: F.filter_response_norm(X, axis_name='k'), "filter_response_norm: axis_name must be bound by .* got 'k'"),
    (lambda: nn.EvoNormS0(16), 'EvoNormS0: num_groups must divide the 16 channels, got 32'),
    (lambda: nn.EvoNormB0(4, momentum=2), 'EvoNormB0: momentum must be a finite number'),
    (lambda: nn.EvoNormB0(4)(X[:1, :1], fit=True), 'evonorm_b0_fit: x must hold more than one value a channel'),
    (lambda: nn.IterNorm(5)(X, fit=False), 'IterNorm: x must have 5 channels on axis -1'),
    (lambda: nn.ScaleNorm(), 'ScaleNorm: in_size or normalized_shape must be given once, got none'),
    (lambda: nn.DynamicTanh(4, alpha_init=jnp.ones(4)), r'DynamicTanh: alpha_init must give the shape \(\)'),
    (lambda: nn.FilterResponseNorm(4, use_threshold=1), 'FilterResponseNorm: use_threshold must be True or False'),
]


@pytest.mark.parametrize(('call', 'words'), ERRORS, ids=[w[:40] for _, w in ERRORS])
def test_errors_are_sentences(call, words):
    with pytest.raises((TypeError, ValueError), match=words) as caught:
        call()
    text = str(caught.value)
    assert text.endswith('.') and '; ' in text


V = jnp.ones(4)
#: norms of rows of four, and how many of the first row's results its first element has a share in
SHARED = {
    'layer_norm': (F.layer_norm, 4),
    'rms_norm': (F.rms_norm, 4),
    'unit_norm': (F.unit_norm, 4),
    'unit_norm, epsilon 0': (lambda x: F.unit_norm(x, epsilon=0.0), 4),
    'scale_norm': (F.scale_norm, 4),
    'group_norm': (lambda x: F.group_norm(x, num_groups=2), 2),
    'local_response_norm': (lambda x: F.local_response_norm(x, 2), 4),
    'global_response_norm': (lambda x: F.global_response_norm(x[:, None])[:, 0], 4),
    'filter_response_norm': (lambda x: F.filter_response_norm(x[:, None])[:, 0], 1),
    'filter_response_norm, learned epsilon': (
        lambda x: F.filter_response_norm(x[:, None], learned_epsilon=V)[:, 0],
        1,
    ),
    'evonorm_s0': (lambda x: F.evonorm_s0(x, V, num_groups=2), 2),
    'evonorm_b0': (lambda x: F.evonorm_b0(x, V, V), 1),
    'evonorm_b0_fit': (lambda x: F.evonorm_b0_fit(x, V)[0], 1),
    'batch_norm_fit': (lambda x: F.batch_norm_fit(x)[0], 1),
}


@pytest.mark.parametrize('name', SHARED)
def test_what_is_not_finite_is_never_made_a_number(name):
    norm, count = SHARED[name]
    good = jnp.array([[1.0, 1.0, 2.0, 3.0], [1.0, -2.0, 4.0, 2.0]])
    call = jax.jit(norm)
    expected, spoiled = call(good), call(good.at[0, 0].set(jnp.nan))
    assert jnp.isnan(spoiled[0, :count]).all()
    np.testing.assert_array_equal(spoiled[0, count:], expected[0, count:])
    alone = 'batch' not in name and name != 'evonorm_b0_fit'  # statistics of a sample alone
    np.testing.assert_array_equal(spoiled[1, not alone :], expected[1, not alone :])
    infinite = call(good.at[0, 0].set(jnp.inf))
    assert not jnp.isfinite(infinite[0, 0])
    # beside an infinite value, all else of its row is 0 or unknown
    assert (jnp.isnan(infinite[0, 1:count]) | (infinite[0, 1:count] == 0)).all()


def test_a_given_variance_that_is_none():
    x, var = jnp.ones((1, 4)), jnp.array([jnp.nan, -1.0, jnp.inf, 1.0])
    y = F.batch_norm(x, jnp.zeros(4), var)
    assert jnp.isnan(y[0, :2]).all()
    np.testing.assert_allclose(y[0, 2:], [0, 1], 1e-5)


def test_running_statistics_keep_their_unit():
    x = batch()
    for layer in (nn.IterNorm(8), nn.EvoNormB0(8)):
        layer(x * u.mV, fit=True)
        for fit in (True, False):
            with pytest.raises(TypeError, match=r'x must have the unit of the running statistics.*got a plain array'):
                layer(x, fit=fit)


def test_rank_promotion_may_be_refused():
    x = batch((10, 8))
    with jax.numpy_rank_promotion('raise'):
        y, *_ = F.iterative_norm_fit(x, num_groups=2)
    np.testing.assert_array_equal(y, F.iterative_norm_fit(x, num_groups=2)[0])
