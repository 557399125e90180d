"""What holds for every norm: values and gradients against float64, masks, dtypes, residuals, units, identities."""

import itertools

import brainunit as u
import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references as ref
import transforms

from jaxnorm import functional as F

each = pytest.mark.parametrize('case', cases.NORMS, ids=cases.id_of)
SHAPE = (6, 16, 32)
#: unit roundoff, half a unit in the last place
ROUNDOFF = {'float32': 2.0**-24, 'bfloat16': 2.0**-8, 'float16': 2.0**-11}


def inputs(mean=0.0, dtype='float32', shape=SHAPE):
    rng = np.random.default_rng(7)
    x = jnp.asarray(rng.normal(mean, 1, shape), dtype)
    scale, bias = (jnp.asarray(rng.normal(m, 0.2, shape[-1]), dtype) for m in (1, 0))
    return x, scale, bias


def wide(*arrays):
    return [np.asarray(a, np.float64) for a in arrays]


def error(got, expected):
    """The largest error relative to the largest value."""
    return np.abs(np.asarray(got, np.float64) - expected).max() / np.abs(expected).max()


def definition(case, where=None):
    """The norm as its definition in JAX, to be differentiated in float64."""

    def axes(x):
        if case.name in ('layer_norm', 'rms_norm', 'standardize'):
            return x, (-1,)
        if case.name == 'batch_norm_fit':
            return x, (0, 1)
        parts = 4 if case.name == 'group_norm' else x.shape[-1]
        return x.reshape(*x.shape[:-1], parts, -1), (1, 3)

    def f(x, scale, bias):
        shape = x.shape
        split, over = axes(x)
        weight = jnp.ones_like(split) if where is None else jnp.broadcast_to(where, shape).reshape(split.shape) * 1.0
        count = weight.sum(over, keepdims=True)
        mean = (split * weight).sum(over, keepdims=True) / count
        mean = 0.0 if case.name == 'rms_norm' else mean
        var = (weight * (split - mean) ** 2).sum(over, keepdims=True) / count
        y = ((split - mean) / jnp.sqrt(var + case.epsilon)).reshape(shape) * scale
        y = y + bias if case.biased else y
        return y if where is None else y * where

    return f


@each
@pytest.mark.parametrize('mean', [1e0, 1e2, 1e4, 1e6])
def test_value_and_gradients_at_any_mean(case, mean, x64):
    x, scale, bias = inputs(mean)
    assert x.dtype == jnp.float32
    g = jnp.asarray(np.random.default_rng(3).normal(size=SHAPE), jnp.float32)
    y, pull = jax.vjp(case.call, x, scale, bias)
    expected, pull_wide = jax.vjp(definition(case), *(a.astype(jnp.float64) for a in (x, scale, bias)))
    assert y.dtype == jnp.float32
    assert expected.dtype == jnp.float64
    assert error(y, expected) <= 2e-7
    dx, dscale, dbias = pull(g)
    wx, wscale, wbias = pull_wide(g.astype(jnp.float64))
    assert error(dx, wx) <= 2e-7
    # sums over n = batch * positions elements round as sqrt(n) at the worst
    n = SHAPE[0] * SHAPE[1]
    assert error(dscale, wscale) <= 2 * n**0.5 * ROUNDOFF['float32']
    if case.biased:
        assert error(dbias, wbias) <= 2 * n**0.5 * ROUNDOFF['float32']


@pytest.mark.parametrize(
    ('call', 'shape'),
    [
        (lambda x: F.batch_norm_fit(x)[0], (1000, 12)),
        (F.rms_norm, (64, 200)),
        (F.layer_norm, (64, 250)),
        (F.layer_norm, (40, 31)),
        (F.layer_norm, (40, 65)),
    ],
    ids=['batch_norm', 'rms_norm', 'layer_norm', 'a prime', 'few divisors'],
)
def test_long_sums_of_many_draws(call, shape, x64):
    # a variance is as exact as its sums: no draw of these may add up its roundings
    both = jax.jit(lambda g, x: (lambda y, pull: (y, pull(g)[0]))(*jax.vjp(call, x)))
    for mean, seed in itertools.product((1e0, 1e2, 1e4, 1e6), range(12)):
        g = np.random.default_rng(1000 + seed).normal(size=shape)
        x = np.random.default_rng(seed).normal(mean, 1, shape)
        arrays = jnp.asarray(g, jnp.float32), jnp.asarray(x, jnp.float32)
        got, exact = both(*arrays), both(*(a.astype(jnp.float64) for a in arrays))
        assert all(error(a, e) <= 2e-7 for a, e in zip(got, exact, strict=True)), (mean, seed)


@pytest.mark.slow
@pytest.mark.parametrize('size', [1e17, 1e-17])
def test_sums_of_very_many_squares(size):
    # 65536 squares of numbers of size 1e17 are no number of 32 bits, and their mean is one
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2**16)) * size, jnp.float32)
    for norm in (
        lambda x: F.layer_norm(x, epsilon=0.0),
        lambda x: F.rms_norm(x, epsilon=0.0),
        lambda x: F.batch_norm_fit(x.reshape(-1, 1), epsilon=0.0)[0],
        lambda x: F.weight_norm(x, jnp.full(1, 256.0), axis=0),
        # as many on each of eight devices as one alone may add up
        lambda x: jax.vmap(lambda v: F.rms_norm(v, epsilon=0.0, axis_name='i'), axis_name='i')(x.reshape(8, -1)),
    ):
        y, slope = jax.jit(jax.value_and_grad(lambda x, n=norm: (n(x) ** 4).sum() / x.size))(x)
        assert 2.9 < y < 3.1, y  # the fourth moment of a normal distribution is 3
        assert 0 < jnp.abs(slope).max() * size < 1


@each
@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_narrow_dtypes_round_once(case, dtype):
    if case.name == 'standardize':
        pytest.skip('its row multiplies by a scale outside of the kernel, which rounds again')
    x, scale, bias = inputs(3.0, dtype)
    y = case.call(x, scale, bias)
    assert y.dtype == x.dtype
    expected = case.reference(*wide(x, scale, bias))
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, 1.01 * ROUNDOFF[dtype], 1e-6)


@pytest.mark.parametrize(
    ('call', 'shape'),
    [
        (F.layer_norm, (500, 2)),
        (F.layer_norm, (500, 3)),
        (lambda x: F.rms_norm(x, jnp.asarray([2.0, 0.5], x.dtype)), (500, 2)),
        (lambda x: F.batch_norm_fit(x)[0], (2, 500)),
        pytest.param(
            lambda x: F.instance_norm(x, where=jnp.arange(7)[:, None] != 2), (50, 7, 9), marks=pytest.mark.slow
        ),
        pytest.param(F.unit_norm, (500, 2), marks=pytest.mark.slow),
    ],
    ids=['layer_norm of two', 'layer_norm of three', 'rms_norm', 'batch_norm', 'instance_norm', 'unit_norm'],
)
def test_gradients_of_short_rows(call, shape, x64):
    """Of which next to nothing is left: of two elements, what epsilon leaves of 1 - 1."""
    both = jax.jit(lambda g, x: (lambda y, pull: (y, pull(g)[0]))(*jax.vjp(call, x)))
    for mean, seed in itertools.product((1e0, 1e2, 1e4, 1e6), range(4)):
        g = np.random.default_rng(1000 + seed).normal(size=shape)
        x = np.random.default_rng(seed).normal(mean, 1, shape)
        arrays = jnp.asarray(g, jnp.float32), jnp.asarray(x, jnp.float32)
        got, exact = both(*arrays), both(*(a.astype(jnp.float64) for a in arrays))
        assert all(error(a, e) <= 2e-7 for a, e in zip(got, exact, strict=True)), (mean, seed)


def test_a_row_of_two_is_what_epsilon_leaves():
    """h is 1 and -1 but for d = epsilon / (2 var), so that the slope is g / std, times 1 - h**2 = 2 d."""
    x, g = jnp.asarray([0.3, -1.1]), jnp.asarray([0.7, -0.2])
    std = (0.3 + 1.1) / 2
    wanted = 1e-6 / (std**2 + 1e-6) * (0.7 + 0.2) / 2 / (std**2 + 1e-6) ** 0.5
    np.testing.assert_allclose(jax.vjp(F.layer_norm, x)[1](g)[0], [wanted, -wanted], 5e-7)


@pytest.mark.parametrize(
    ('case', 'masked'),
    [
        pytest.param(
            case,
            masked,
            id=f'{case.name}-{masked}',
            marks=[pytest.mark.slow] if masked or case.name != 'layer_norm' else [],
        )
        for case in cases.NORMS
        for masked in (False, True)
    ],
)
def test_derivatives_of_every_kind(case, masked, x64):
    # rows of eight elements or more, but those of an instance under a mask: of four, by the rule of short rows
    shape = (2, 4 if masked else 8, 8)
    arguments = inputs(0.5, 'float64', shape)
    assert arguments[0].dtype == jnp.float64
    mask = jnp.asarray(np.random.default_rng(0).random(shape) > 0.25) if masked else None
    transforms.check(
        lambda *a: jnp.sin(case.call(*a, mask)).sum(),
        lambda *a: jnp.sin(definition(case, mask)(*a)).sum(),
        *arguments,
    )


@each
def test_masked_is_sliced(case):
    x, scale, bias = inputs(2.0)
    keep = 11
    where = (jnp.arange(SHAPE[1]) < keep)[None, :, None]
    if case.name in ('layer_norm', 'rms_norm', 'standardize'):
        where, keep = jnp.ones((1, 1, SHAPE[2]), bool).at[..., 20:].set(False), None
    dirty = jnp.where(where, x, jnp.nan)
    f = lambda v: case.call(v, scale, bias, where)
    y, pull = jax.vjp(f, dirty)
    (dx,) = pull(jnp.ones_like(y) + x)
    np.testing.assert_allclose(y, case.reference(*wide(x, scale, bias), np.asarray(where)), 1e-5, 1e-5)
    assert (jnp.where(where, 0, y) == 0).all()
    assert (jnp.where(where, 0, dx) == 0).all()
    assert jnp.isfinite(dx).all()
    if keep:
        sliced = case.call(x[:, :keep], scale, bias)
        np.testing.assert_allclose(y[:, :keep], sliced, 1e-5, 1e-6)


@each
def test_fully_masked_gives_zeros(case):
    x, scale, bias = inputs()
    nothing = jnp.zeros((1, 1, 1), bool)
    y, pull = jax.vjp(lambda *a: case.call(*a, nothing), jnp.full_like(x, jnp.nan), scale, bias)
    assert (y == 0).all()
    assert all((g == 0).all() for g in pull(jnp.ones_like(y)))


@each
def test_constant_rows_are_zeros_with_finite_gradients(case):
    x, scale, bias = inputs()
    constant = jnp.full_like(x, 0.0 if case.name == 'rms_norm' else 3.7)
    y, pull = jax.vjp(lambda v: case.call(v, scale, bias, epsilon=0.0), constant)
    np.testing.assert_allclose(y, jnp.broadcast_to(bias if case.biased else 0.0, SHAPE), atol=1e-6)
    assert jnp.isfinite(pull(jnp.ones_like(y))[0]).all()


@each
@pytest.mark.parametrize('size', [1e17, 1e-17])
def test_extreme_sizes_are_normalized(case, size):
    x, scale, bias = inputs()
    y = case.call(x * size, scale, bias, epsilon=0.0)
    np.testing.assert_allclose(y, case.call(x, scale, bias, epsilon=0.0), 1e-4, 1e-5)


@each
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_saves_its_input_and_two_numbers_a_statistic(case, dtype):
    x, scale, bias = inputs(dtype=dtype)
    kernel = {'standardize': lambda x, s, b: F.standardize(x)}.get(case.name, case.call)
    saved = jax.tree.leaves(jax.vjp(kernel, x, scale, bias)[1])
    rows = {'batch_norm_fit': SHAPE[2], 'group_norm': 4 * SHAPE[0], 'instance_norm': SHAPE[0] * SHAPE[2]}
    statistics = rows.get(case.name, SHAPE[0] * SHAPE[1])
    parameters = scale.nbytes + bias.nbytes
    assert sum(a.nbytes for a in saved) <= x.nbytes + 2 * 4 * statistics + parameters


@each
def test_jit_equals_eager_and_traces_once(case):
    x, scale, bias = inputs(4.0)
    count = 0

    @jax.jit
    def f(*arguments):
        nonlocal count
        count += 1
        return case.call(*arguments)

    # one more fusion may round differently: 2 ulp of the largest value
    assert error(f(x, scale, bias), np.asarray(case.call(x, scale, bias), np.float64)) <= 4 * ROUNDOFF['float32']
    f(x + 1, scale, bias)
    assert count == 1


@each
def test_units(case):
    if case.name == 'standardize':
        pytest.skip('layer_norm without parameters, covered there')
    x, scale, bias = inputs(5.0)
    y = case.call(x * u.mV, scale, bias)
    assert isinstance(y, jax.Array)
    np.testing.assert_array_equal(y, case.call(x, scale, bias))


def test_moments_have_units_and_names():
    x, _, _ = inputs(5.0)
    mean, var = F.moments(x * u.mV, (0, 1))
    assert (mean.unit, var.unit) == (u.mV, u.mV**2)
    expected = ref.moments(np.asarray(x, np.float64), (0, 1))
    np.testing.assert_allclose(mean.mantissa, expected[0].ravel(), 1e-6)
    np.testing.assert_allclose(var.mantissa, expected[1].ravel(), 1e-6)
    assert F.moments(x, -1, keepdims=True)[0].shape == (6, 16, 1)
    assert F.moments(x.astype(jnp.bfloat16), -1)[0].dtype == jnp.float32
    assert all(jnp.isnan(m).all() for m in F.moments(x[:0], 0))


def test_all_results_of_a_batch_move_together():
    """The tangents and cotangents of moments beside those of the result, in float32; and where only they curve."""
    x, scale, bias = inputs(2.0, shape=(5, 3, 4))

    def defined(x, scale, bias):
        mean, var = x.mean((0, 1)), x.var((0, 1))
        return (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias, mean, var

    rng = np.random.default_rng(3)
    some = lambda tree: jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype), tree)
    tangents = some((x, scale, bias))
    results, moved = jax.jvp(F.batch_norm_fit, (x, scale, bias), tangents)
    expected, wanted = jax.jvp(defined, (x, scale, bias), tangents)
    for got, want in zip((*results, *moved), (*expected, *wanted), strict=True):
        np.testing.assert_allclose(got, want, 1e-4, 1e-5)
    cotangents = some(results)
    pulls = (jax.vjp(f, x, scale, bias)[1](cotangents) for f in (F.batch_norm_fit, defined))
    for got, want in zip(*pulls, strict=True):
        np.testing.assert_allclose(got, want, 1e-4, 1e-5)

    def loss(f, x, scale):
        y, mean, var = f(x, scale, bias)
        return y.sum() + (mean**2).sum() + (var**2).sum()

    for got, want in zip(
        *(jax.tree.leaves(jax.hessian(loss, (1, 2))(f, x, scale)) for f in (F.batch_norm_fit, defined)), strict=True
    ):
        np.testing.assert_allclose(got, want, 1e-3, 1e-4)


@pytest.mark.parametrize('shape', [(0, 6), (4, 0, 6)])
def test_of_nothing_there_are_gradients(shape):
    x, scale = jnp.zeros(shape), jnp.ones(6)
    ids = jnp.zeros(shape, int)
    for f in (
        lambda x, s: F.layer_norm(x, s, s, segment_ids=ids),
        lambda x, s: F.rms_norm(x, s, where=x > 0),
        lambda x, s: F.layer_norm(x, s, s, activation='relu'),
        lambda x, s: F.batch_norm_fit(x, s, s)[0],
        lambda x, s: F.scale_norm(x, s),
    ):
        dx, dscale = jax.grad(lambda x, s, f=f: f(x, s).sum(), (0, 1))(x, scale)
        assert dx.shape == shape
        assert (dscale == 0).all()


@pytest.mark.parametrize('dtype', ['bfloat16', pytest.param('float8_e4m3fn', marks=pytest.mark.slow)])
def test_all_arguments_may_be_narrow(dtype):
    x, s = jnp.arange(32.0).reshape(8, 4).astype(dtype), jnp.ones(4, dtype)
    kernels = [lambda x, s: F.layer_norm(x, s, s), lambda x, s: F.filter_response_norm(x[:, None], s, s, s, s)]
    kernels += [lambda x, s: F.evonorm_b0_fit(x, s, s, s)[0]] if '8' in dtype else []
    with jax.numpy_dtype_promotion('standard' if '8' in dtype else 'strict'):
        for f in kernels:
            assert f(x, s).dtype == dtype
            slopes = jax.grad(lambda x, s, f=f: f(x, s).astype('float32').sum(), (0, 1))(x, s)
            assert [d.dtype for d in slopes] == [dtype, dtype]
    body = lambda c, _: (F.layer_norm(c, s, s), None)
    slope = jax.grad(lambda x: jax.lax.scan(body, x, length=2)[0].astype('float32').sum())(x)
    assert slope.dtype == dtype


@pytest.mark.slow
def test_moments_are_differentiable(x64):
    x = jnp.asarray(np.random.default_rng(0).normal(3, 2, (5, 4)))
    f = lambda v: sum((m**2).sum() for m in F.moments(v, 0))
    g = lambda v: (v.mean(0) ** 2).sum() + (v.var(0) ** 2).sum()
    np.testing.assert_allclose(jax.grad(f)(x), jax.grad(g)(x), 1e-12)
    np.testing.assert_allclose(jax.hessian(f)(x), jax.hessian(g)(x), 1e-12, 1e-13)


def test_batch_norm_with_given_statistics(x64):
    x, scale, bias = inputs(3.0, 'float64')
    mean, var = F.moments(x, (0, 1))
    y = F.batch_norm(x, mean, var, scale, bias)
    np.testing.assert_allclose(y, ref.batch_norm(*wide(x, mean, var, scale, bias)), 1e-12, 1e-12)
    np.testing.assert_allclose(y, F.batch_norm_fit(x, scale, bias)[0], 1e-12, 1e-12)
    first = jnp.moveaxis(x, -1, 1)
    np.testing.assert_allclose(F.batch_norm(first, mean, var, scale, bias, axis=1), jnp.moveaxis(y, -1, 1), 1e-12)
    np.testing.assert_allclose(F.batch_norm(x * u.mV, mean * u.mV, var * u.mV**2, scale, bias), y, 1e-12)


def test_identities():
    x, scale, bias = inputs(2.0)
    over_all = F.layer_norm(x, axis=(1, 2)) * scale + bias
    np.testing.assert_allclose(F.group_norm(x, scale, bias, num_groups=1), over_all, 1e-5, 1e-5)
    np.testing.assert_allclose(
        F.group_norm(x, scale, bias, num_groups=SHAPE[2]), F.instance_norm(x, scale, bias), 1e-5, 1e-5
    )
    np.testing.assert_allclose(F.layer_norm(3 * x + 5, epsilon=0.0), F.layer_norm(x, epsilon=0.0), 1e-4, 1e-5)
    first = jnp.moveaxis(x, -1, 1)
    for kernel in (lambda v, a: F.group_norm(v, scale, bias, num_groups=4, axis=a),
                   lambda v, a: F.instance_norm(v, scale, bias, axis=a),
                   lambda v, a: F.batch_norm_fit(v, scale, bias, axis=a)[0]):  # fmt: skip
        np.testing.assert_allclose(jnp.moveaxis(kernel(first, 1), 1, -1), kernel(x, -1), 1e-5, 1e-6)


@pytest.mark.slow
def test_split_over_a_named_axis_is_the_whole(x64):
    x, scale, bias = inputs(2.0, 'float64')
    where = jnp.asarray(np.random.default_rng(1).random((6, 16, 1)) > 0.5).at[:2].set(False)

    def whole(x, w):
        return F.batch_norm_fit(x, scale, bias, where=w)

    def parts(x, w):
        f = lambda v, m: F.batch_norm_fit(v, scale, bias, where=m, axis_name='devices')
        y, mean, var = jax.vmap(f, axis_name='devices')(x.reshape(3, 2, 16, 32), w.reshape(3, 2, 16, 1))
        return y.reshape(x.shape), mean[0], var[0]

    for a, b in zip(whole(x, where), parts(x, where), strict=True):  # the first device sees nothing at all
        np.testing.assert_allclose(a, b, 1e-12, 1e-12)
    loss = lambda f: lambda v: (f(v, where)[0] ** 3).sum()
    np.testing.assert_allclose(jax.grad(loss(parts))(x), jax.grad(loss(whole))(x), 1e-9, 1e-12)


def test_tangents_under_a_mask_at_a_large_mean(x64):
    x, t = (jnp.asarray(np.random.default_rng(i).normal(m, 1, (4, 64)), jnp.float32) for i, m in ((0, 1e6), (1, 1)))
    f = lambda v: F.layer_norm(v, where=jnp.arange(64) < 20)
    expected = jax.jvp(f, (x.astype(jnp.float64),), (t.astype(jnp.float64),))[1]
    assert error(jax.jvp(f, (x,), (t,))[1], np.asarray(expected)) <= 2e-7
