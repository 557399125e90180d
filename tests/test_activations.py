"""What holds for every activation: values, slopes, limits, dtypes, transformations, residuals, units."""

import brainunit as u
import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transforms

each = pytest.mark.parametrize('case', cases.ACTIVATIONS, ids=cases.id_of)
every = pytest.mark.parametrize('case', [*cases.ACTIVATIONS, *cases.OVER_AXIS], ids=cases.id_of)
GRID = np.concatenate([np.linspace(-12, 12, 241), [-1e-3, 1e-3, -1e-6, 1e-6, 50.0, -50.0]])
#: unit roundoff: half a unit in the last place, relative
ROUNDOFF = {'float64': 2.0**-53, 'float32': 2.0**-24, 'bfloat16': 2.0**-8, 'float16': 2.0**-11}


def apply(case):
    return lambda x: case.function(x, **case.arguments)


@every
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
def test_value(case, dtype):
    x = jnp.asarray(GRID, dtype)
    y = apply(case)(x)
    assert y.dtype == x.dtype
    assert y.shape == x.shape
    expected = case.reference(np.asarray(x, np.float64), **case.arguments)
    expected = np.where(np.abs(expected) > float(jnp.finfo(dtype).max), np.copysign(np.inf, expected), expected)
    # 4 ulp in float32, a rounding in the narrow ones (test_accuracy.py measures ulp by ulp); what is below the
    # least normal number may be flushed to zero
    tolerance = (8 if dtype == 'float32' else 1.2) * ROUNDOFF[dtype]
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, tolerance, 1.2 * float(jnp.finfo(dtype).tiny))


@every
def test_value_in_double(case, x64):
    y = apply(case)(jnp.asarray(GRID))
    assert y.dtype == jnp.float64
    # the references themselves are a few ulp off in their tails
    np.testing.assert_allclose(y, case.reference(GRID, **case.arguments), 2e-13, 1e-300)


@each
def test_slope_in_double_is_that_of_the_definition(case, x64):
    x = jnp.asarray(GRID[np.abs(GRID) > 1e-2]) + 3e-3  # off the tenths, where pieces meet
    for kink in case.kinks:
        x = x[jnp.abs(x - kink) > 1e-2]
    h = 1e-5
    f = case.reference
    slope = (f(np.asarray(x + h), **case.arguments) - f(np.asarray(x - h), **case.arguments)) / (2 * h)
    got = jax.vmap(jax.grad(apply(case)))(x)
    assert got.dtype == jnp.float64
    # a central difference is off by f''' h² / 6 and by rounding over h
    np.testing.assert_allclose(got, slope, 1e-9, 1e-9)


@pytest.mark.slow
@each
def test_derivatives_of_every_kind_agree(case, x64):
    f = apply(case)
    x = jnp.asarray([-7.3, -2.3, -0.7, -0.1, 0.2, 1.1, 3.1, 8.0])
    weighted = lambda v: (f(v) * jnp.arange(1.0, 9.0)).sum()
    transforms.check(weighted, weighted, x)
    slope = jax.jit(jax.vmap(jax.grad(f)))
    second = jax.jit(jax.vmap(jax.grad(jax.grad(f))))(x)
    np.testing.assert_allclose(second, (slope(x + 1e-6) - slope(x - 1e-6)) / 2e-6, 1e-7, 1e-8)


@each
def test_limits(case):
    f = apply(case)
    y, slope = jax.vmap(jax.value_and_grad(f))(jnp.asarray([-jnp.inf, jnp.inf, jnp.nan]))
    np.testing.assert_allclose(y[:2], case.limits, 4e-7)
    assert jnp.isnan(y[2])
    if case.name != 'selu':
        expected = [case.arguments.get('negative_slope', case.slope_limits[0]), case.slope_limits[1]]
        np.testing.assert_allclose(slope[:2], expected, 1e-7)
    assert (jnp.isfinite(slope[:2]) | np.isinf(case.slope_limits)).all()


@pytest.mark.parametrize('name', ['leaky_relu', 'prelu'])
def test_no_slope_at_infinity(name):
    f = getattr(cases.F, name)
    for slope in (0.0, jnp.asarray(0.0)):
        x = jnp.asarray([-jnp.inf, -2.0, jnp.inf, jnp.nan])
        np.testing.assert_array_equal(f(x, slope), [0, 0, jnp.inf, jnp.nan])
    np.testing.assert_array_equal(cases.nn.PReLU(slope=0.0)(x), [0, 0, jnp.inf, jnp.nan])


@each
def test_kinks_and_sign_of_zero(case):
    for at, slope in case.kinks.items():
        assert jax.grad(apply(case))(at) == pytest.approx(slope, rel=1e-7)
    y = apply(case)(jnp.asarray([0.0, -0.0]))
    if case.name in ('elu', 'selu', 'gelu', 'silu', 'tanh'):
        assert np.signbit(np.asarray(y)).tolist() == [False, True]


@every
def test_jit_vmap_and_eager_agree(case):
    x = jnp.linspace(-3, 3, 24).reshape(4, 6)
    y = apply(case)(x)
    np.testing.assert_allclose(jax.jit(apply(case))(x), y, 1e-6)
    np.testing.assert_allclose(jax.vmap(apply(case))(x), y, 1e-6)
    assert apply(case)(np.asarray(x)).dtype == jnp.float32
    assert apply(case)(jnp.arange(4)).dtype == jnp.float32
    assert apply(case)(jnp.zeros((0, 3))).shape == (0, 3)


@every
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_saves_at_most_its_input(case, dtype):
    x = jnp.ones((8, 16), dtype)
    saved = [a for a in jax.tree.leaves(jax.vjp(apply(case), x)[1]) if a.size > 1]
    if case.residual != 'input':
        assert [str(a.dtype) for a in saved] == {'mask': ['bool'], 'nothing': []}[case.residual]
    else:
        assert sum(a.size * a.dtype.itemsize for a in saved) <= x.nbytes


@every
def test_strict_about_dtypes(case):
    with jax.numpy_dtype_promotion('strict'):
        for dtype in ('bfloat16', 'float8_e4m3fn'):
            x = jnp.asarray([-2.0, -0.5, 0.25, 1.5], dtype)
            y, pull = jax.vjp(apply(case), x)
            (slope,) = pull(jnp.ones_like(y))
            assert y.dtype == slope.dtype == dtype
            expected = case.reference(np.asarray(x, np.float64), **case.arguments)
            tiny = float(jnp.finfo(dtype).smallest_subnormal)
            np.testing.assert_allclose(np.asarray(y, np.float64), expected, 0.6 * float(jnp.finfo(dtype).eps), tiny)


class Parameter:
    """As those of other libraries: callable, and what stands for an array."""

    def __init__(self, value):
        self.value = value

    def __call__(self):
        raise AssertionError

    def __jax_array__(self):
        return self.value


def test_parameters_of_other_libraries_are_arrays():
    x, slope = jnp.asarray([-2.0, 2.0]), jnp.asarray([0.1, 0.2])
    np.testing.assert_array_equal(cases.F.prelu(Parameter(x), Parameter(slope)), cases.F.prelu(x, slope))


class Foreign:
    """An array that JAX can convert, but takes for no argument."""

    dtype, shape = np.dtype('float32'), (2,)

    def __array__(self, dtype=None, copy=None):
        return np.ones(2, np.float32)


@pytest.mark.parametrize(
    ('value', 'words'),
    [
        ('abc', "str 'abc'; pass numbers, or an array of them"),
        (object(), r'object <object object at .*>; pass numbers, or an array of them'),
        (np.asarray([1, None]), r'object\[2\]; pass numbers, or an array of them'),
        (2**40, 'int 1099511627776; pass it as a float'),
        ([1, 2], r'list \[1, 2\]; convert it with jnp.asarray\(x\) first'),
        (Foreign(), r'float32\[2\]; convert it with jnp.asarray\(x\) first'),
        (None, r'NoneType None; convert it with jnp.asarray\(x\) first'),
    ],
    ids=lambda v: type(v).__name__,
)
def test_what_is_no_array(value, words):
    with pytest.raises(TypeError, match=rf'^relu: x must be an array, got {words}\.(\n|$)'):
        cases.F.relu(value)


def test_what_is_no_hyperparameter():
    for value in ([jnp.ones(2)], {'a': 'b'}, object()):
        with pytest.raises(TypeError, match=r'^elu: alpha must be (an array|a number or an array), got .*\.(\n|$)'):
            cases.F.elu(1.0, value)
    for value in ('a', None, [1.0], True):
        with pytest.raises(
            TypeError, match=r'^elu: alpha must be a finite number, got .*; pass a Python float\.(\n|$)'
        ):
            cases.F.elu(1.0, value)
    with pytest.raises(ValueError, match=r'^elu: alpha must be a finite number, got nan; choose'):
        cases.F.elu(1.0, jnp.nan)


@each
def test_units(case):
    x = jnp.asarray([-1.0, 2.0])
    f = apply(case)
    if case.keeps_unit:
        y = f(x * u.mV)
        assert y.unit == u.mV
        np.testing.assert_array_equal(y.mantissa, f(x))
    else:
        with pytest.raises(TypeError, match=rf'{case.name}: x must be dimensionless, got a Quantity in mV'):
            f(x * u.mV)
    np.testing.assert_array_equal(f(u.Quantity(x)), f(x))


LEARNED = {
    'leaky_relu': {'negative_slope': [0.2, 0.3, 0.4]},
    'prelu': {'slope': [0.1, 0.25, 2.0]},
    'elu': {'alpha': [0.5, 1.5, 3.0]},
    'celu': {'alpha': [0.5, 1.0, 3.0]},
    'softplus': {'beta': [0.3, 1.7, 2.0]},
    'squareplus': {'b': [0.5, 1.0, 4.0]},
    'scaled_tanh': {'scale': [0.5, 1.0, 3.0], 'slope': [0.3, 1.0, 2.0]},
    'snake': {'frequency': [0.3, 1.0, 3.0]},
    'sine': {'frequency': [0.3, 1.0, 3.0]},
    'time_decayed_tanh': {'t': [0.0, 1.0, 30.0], 'decay_rate': [0.1, 0.2, 0.3]},
    'gated_tanh': {'h_prev': [-1.0, 0.0, 2.0]},
    'swish': {'beta': [0.3, 1.0, 2.5]},
    'adaptive_swish': {'alpha': [0.2, 1.0, -3.0], 'beta': [0.3, 1.0, -2.5]},
    'xielu': {'alpha_p': [0.2, 0.8, 3.0], 'alpha_n': [0.3, 0.8, 2.5], 'beta': [0.5, 0.5, 0.1]},
}


@pytest.mark.slow
@pytest.mark.parametrize('name', LEARNED)
def test_learned_hyperparameters(name, x64):
    """Arrays, one number a channel: the definition's value, every derivative, and nothing saved but the arrays."""
    f, reference = getattr(cases.F, name), getattr(cases.ref, name)
    x = jnp.linspace(-4, 4, 12).reshape(4, 3) + 0.01
    names, values = LEARNED[name].keys(), [jnp.asarray(v) for v in LEARNED[name].values()]
    call = lambda v, *a: f(v, **dict(zip(names, a, strict=True)))
    given = {n: np.asarray(v) for n, v in zip(names, values, strict=True)}
    np.testing.assert_allclose(call(x, *values), reference(np.asarray(x), **given), 1e-12)
    kept = [a for a in jax.tree.leaves(jax.vjp(call, x, *values)[1]) if a.size > 1]
    sizes = sorted(a.size for a in kept if a.dtype != bool)  # relu-like: and a mask
    assert sizes == sorted([x.size, *(v.size for v in values)])

    weight = jnp.cos(jnp.arange(12.0)).reshape(4, 3)
    total = lambda v, *a: (call(v, *a) * weight).sum()
    transforms.check(total, total, x, *values)
    slopes, h = jax.jit(jax.grad(total, tuple(range(1, len(values) + 1))))(x, *values), 1e-6
    for k, v in enumerate(values):
        for i in range(3):
            up, down = (total(x, *values[:k], v.at[i].add(d), *values[k + 1 :]) for d in (h, -h))
            np.testing.assert_allclose(slopes[k][i], (up - down) / (2 * h), 1e-7, 1e-8)
    narrow = jax.grad(lambda a: call(x.astype(jnp.bfloat16), *a).sum().astype(jnp.float32))(values)
    assert all(g.dtype == v.dtype for g, v in zip(narrow, values, strict=True))
    argument = next(iter(names))
    with pytest.raises(ValueError, match=rf'{name}: {argument} must broadcast to the input shape \(4, 3\), got \(5,\)'):
        f(x, **{argument: jnp.ones(5)})


@pytest.mark.parametrize('case', cases.OVER_AXIS, ids=cases.id_of)
@pytest.mark.parametrize('axis', [0, -1, (0, 1)])
def test_over_an_axis(case, axis, x64):
    x = np.random.default_rng(0).normal(size=(3, 4))
    np.testing.assert_allclose(case.function(x, axis=axis), case.reference(x, axis), 1e-13)
    peers = {'softmin': lambda v, axis: jax.nn.softmax(-v, axis)}
    peer = peers.get(case.name) or getattr(jax.nn, case.name, None)
    if peer is None:
        return
    weight = np.random.default_rng(1).normal(size=(3, 4))

    @jax.jit  # out of jit each step of each would be compiled by itself
    def slopes():
        weighed = [lambda v, f=f: (f(v, axis=axis) * weight).sum() for f in (case.function, peer)]
        return [(jax.grad(f)(x), jax.hessian(f)(x)) for f in weighed]

    (slope, bend), (their_slope, their_bend) = slopes()
    np.testing.assert_allclose(slope, their_slope, 1e-12, 1e-14)
    np.testing.assert_allclose(bend, their_bend, 1e-11, 1e-14)


def test_softmax_limits_and_masks():
    softmax = cases.F.softmax
    np.testing.assert_array_equal(softmax(jnp.asarray([0.0, jnp.inf, 1.0])), [0, 1, 0])
    np.testing.assert_array_equal(softmax(jnp.asarray([jnp.inf, jnp.inf, 1.0])), [0.5, 0.5, 0])
    np.testing.assert_allclose(softmax(jnp.full(4, -jnp.inf)), np.full(4, 0.25))
    assert jnp.isnan(softmax(jnp.asarray([jnp.nan, 1.0]))).all()
    x = jnp.asarray([[1.0, jnp.nan, 2.0], [jnp.nan, jnp.nan, jnp.nan]])
    mask = ~jnp.isnan(x)
    y, pull = jax.vjp(lambda v: softmax(v, where=mask), x)
    np.testing.assert_allclose(y[0, ::2], softmax(jnp.asarray([1.0, 2.0])), 1e-6)
    assert y[0, 1] == 0
    assert (y[1] == 0).all()
    assert jnp.isfinite(pull(jnp.ones_like(y))[0]).all()
