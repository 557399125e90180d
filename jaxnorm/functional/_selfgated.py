"""Self-gated activations with other gates than those of `_gated`: mish and its kin, and xielu.

Each side of zero has a form of its own, in which no digit cancels. Where a slope passes through zero, at x = -r, it is
written with r - y, y = |x|, as a factor, or as a sum of two terms of one sign: r - y and exp(-y) - exp(-r), each with a
positive factor.
"""

from typing import Any

import jax.numpy as jnp

from .. import _checks
from .._typing import Array, ArrayLike
from . import _elementary as elementary
from ._gated import _from_root, _rise, _two_parts
from ._kernel import elementwise
from ._sigmoidal import _tanh32, _tanh64

# where the slopes of these functions are zero, in two parts, and, where needed, exp(-r)
_MISH_ROOT = (1.1924312114715576, 3.043937594950088e-09)
_MISH_ROOT64 = (1.1924312145154952, 4.8484829848031044e-17)
_SERF_ROOT = (1.1930599212646484, 4.766353952868329e-08)
_SERF_ROOT64 = (1.193059968928188, -3.096701676302884e-17)
_SERF_ROOT_EXP = 0.3032917792739206
_TANH_EXP_ROOT = (1.0788600444793701, 1.3985253939463168e-08)
_TANH_EXP_ROOT64 = (1.078860058464624, 9.55786742622646e-17)
_TANH_EXP_ROOT_EXP = 0.33998286542025413


def _exp_below(x: Array) -> tuple[Array, Array, Array, Array, int]:
    """(y, scale, p, u, shift) with y = |x| and u = exp(-y) = scale * (1 + p) / 2**shift; y stops where that is zero."""
    shift = elementary.format_of(x).spare
    y = jnp.minimum(elementary.magnitude(x), -elementary.lowest(x, shift))
    scale, p = elementary.exp_parts(-y, shift=shift)
    return y, scale, p, (scale + scale * p) * 2.0**-shift, shift


@elementwise
def mish(x: ArrayLike) -> Array:
    r"""Self-regularized unit, smooth and not monotone.

    .. math:: \mathrm{mish}(x) = x \tanh(\log(1 + e^x))

    Returns
    -------
    array
        Same shape and dtype as `x`; in [-0.3088, inf).

    Notes
    -----
    Value and slope within 4 ulp in float32, 0.6 ulp in bfloat16 and float16, 8 ulp in float64, in the left tail and
    where the slope passes through zero (x = -1.1924), too.

    References
    ----------
    Misra, "Mish: a self regularized non-monotonic activation function", arXiv:1908.08681.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> mish(jnp.array([0.0, jnp.inf])).tolist()
    [0.0, inf]
    >>> bool(mish(-jnp.inf) == 0)
    True
    """
    y, scale, p, u, shift = _exp_below(x)
    # tanh(log(1 + u)) / u and tanh(log(1 + 1 / u)) both lie in [0.6, 1] and are rounded less as what they lack of 1
    gate = 1 - u * jnp.where(x < 0, 1 + u, 2 * u) / jnp.where(x < 0, 2 + u * (2 + u), 1 + 2 * u * (1 + u))
    tail = -y * gate * scale
    return jnp.where(x < 0, (tail + tail * p) * 2.0**-shift, x * gate)


# mish'(-y) / (r - y) in powers of y - 0.75 for 0 <= y <= 1.5, minimax in relative error: 6.8e-09, 6.9e-18
_MISH_NEAR = (
    0.3633236885070801, -0.22395393252372742, -0.0054664951749145985, 0.051441922783851624, -0.016560148447752,
    -0.004359124228358269, 0.004689473658800125, -0.0008132520597428083, -0.0005597895360551775,
    0.0002707493840716779, -2.4144438270923274e-07,
)  # fmt: skip
_MISH_NEAR64 = (
    0.3633236878999841, -0.2239539045836783, -0.005466469276245394, 0.05144088822041652, -0.016560278824529442,
    -0.004348743461180317, 0.004688259747160489, -0.0008558247510683805, -0.0005494972610896436,
    0.00034766855971950255, -2.5567311292832478e-05, -5.163204701606867e-05, 2.2440227086206297e-05,
    1.0118817812403571e-06, -4.1495349363856545e-06, 1.259444078302408e-06, 2.649021953986315e-07,
    -2.9661210713732254e-07, 4.944615778417148e-08, 2.9592325746585288e-08, -1.2012207916993649e-08,
)  # fmt: skip


# Up to y = 1.5 a polynomial, which is rounded less than any quotient, times the distance from the root. Beyond,
# mish'(-y) = -u (4 (y - 1) + u (4 y - 6 - u (4 + u))) / (2 + u (2 + u))**2, where no digit cancels.
# mish'(y) = 1 - 2 u**2 (1 - 2 y + 2 u (1 - y + u)) / (1 + 2 u (1 + u))**2.
@mish.derivative
def _mish_slope(x: Array) -> Array:
    double = x.dtype == jnp.float64
    y, scale, p, u, shift = _exp_below(x)
    ahead, rest = _from_root(y, _two_parts(x.dtype, _MISH_ROOT, _MISH_ROOT64))
    factor = elementary.polynomial(jnp.minimum(y, 1.5) - 0.75, _MISH_NEAR64 if double else _MISH_NEAR)
    below = 4 * (1 - y) - u * (4 * y - (6 + u * (4 + u)))
    lacks = 2 * u * u * ((1 - 2 * y) + 2 * u * (1 - y + u))
    n, w = u * (2 + u), 2 * u * (1 + u)
    part = jnp.where(x < 0, below, lacks) / jnp.where(x < 0, 4 + n * (4 + n), elementary.square_of_one_plus(w))
    tail = scale * part
    left = jnp.where(y < 1.5, ahead * factor + rest * factor, (tail + tail * p) * 2.0**-shift)
    return jnp.where(x < 0, left, 1 - part)


@elementwise
def lisht(x: ArrayLike) -> Array:
    r"""Linearly scaled hyperbolic tangent, an even function.

    .. math:: \mathrm{lisht}(x) = x \tanh(x)

    Returns
    -------
    array
        Same shape and dtype as `x`; in [0, inf).

    Notes
    -----
    Value and slope within 4 ulp in float32, 0.6 ulp in bfloat16 and float16, 8 ulp in float64.

    References
    ----------
    Roy, Manna, Dubey and Chaudhuri, "LiSHT: non-parametric linearly scaled hyperbolic tangent activation function for
    neural networks", arXiv:1901.05894.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> lisht(jnp.array([-jnp.inf, 0.0, jnp.inf])).tolist()
    [inf, 0.0, inf]
    """
    return x * (_tanh64(x) if x.dtype == jnp.float64 else _tanh32(x))


# With u = exp(-2 |x|), the slope at |x| is ((1 - u) (1 + u) + 4 |x| u) / (1 + u)**2: a sum of positive terms.
@lisht.derivative
def _lisht_slope(x: Array) -> Array:
    y = jnp.minimum(elementary.magnitude(x), -0.5 * elementary.lowest(x))
    scale, p = elementary.exp_parts(-2 * y)
    u = scale + scale * p
    slope = (((1 - scale) - scale * p) * (1 + u) + 4 * y * u) / elementary.square_of_one_plus(u)
    return jnp.where(x < 0, -slope, slope)


# from where on value and slope of tanh_exp are those of x
_TANH_EXP_END, _TANH_EXP_END64 = 2.6, 3.2
# With z = exp(-2 y), (sinh(2 sqrt(z)) / (2 sqrt(z)) - r) / (z - exp(-2 r)) for 0 <= z <= 1: 1.7e-8, 2.9e-17
_SINH = (
    0.6822491884231567, 0.1348111778497696, 0.012775463052093983, 0.000722219527233392, 9.767798474058509e-06,
    7.1273539106186945e-06,
)  # fmt: skip
_SINH64 = (
    0.6822491998319916, 0.1348105871385795, 0.012780300271014103, 0.0007084414109227257, 2.5729544270377767e-05,
    6.592982598917732e-07, 1.2337754511377233e-08, 6.01296513871014e-10, -5.187218805094654e-10,
    4.0176623447960897e-10, -1.7423514816854966e-10, 3.249881922563538e-11,
)  # fmt: skip
# The functions of u = exp(-y) and of x > 0 from which serf is made, minimax in the relative error of the whole, in
# powers of u - 0.5 and, as far as it differs from x, of x - 2 or, in float64, x - 3:
#   _SERF_BELOW      erf(log(1 + u)) / u                                    4e-10 (rounded 2.8e-8), 1.8e-18
#   _SERF_AHEAD      h = 2 / sqrt(pi) exp(-log(1 + u)**2) / (1 + u)         1.5e-8, 3.1e-19
#   _SERF_RISE       h (erf(log(1 + u)) / (u h) - r) / (u - exp(-r))        4.0e-8, 1.5e-19
#   _SERF_ABOVE      erfc(softplus(x)) exp(x**2)                            1.5e-8, 9.8e-18
#   _SERF_FLAT       (1 - serf'(x)) exp(x**2)                               2.2e-8, 2.8e-17
_SERF_BELOW = (
    0.8672715425491333, -0.45811912417411804, 0.14573325216770172, 0.0007306517218239605, -0.04138728603720665,
    0.03817771002650261, -0.024607917293906212, 0.013139346614480019, -0.006002665031701326, 0.0018399759428575635,
)  # fmt: skip
_SERF_AHEAD = (
    0.6382119655609131, -0.770504891872406, 0.4382954239845276, -0.07984743267297745, -0.11146445572376251,
    0.15517595410346985, -0.12661492824554443, 0.08148831129074097, -0.043981414288282394, 0.017630919814109802,
    -0.003119133645668626,
)  # fmt: skip
_SERF_RISE = (
    0.5380882024765015, -0.3911825120449066, 0.0711875632405281, 0.12612208724021912, -0.17552067339420319,
    0.14483581483364105, -0.09341172873973846, 0.05084984004497528, -0.022478867322206497, 0.0030106462072581053,
    0.003923224285244942,
)  # fmt: skip
_SERF_ABOVE = (
    0.14361189305782318, -0.014171132817864418, 0.005653471685945988, -0.005470043979585171, 0.0021336718928068876,
    -0.0006276172352954745, 0.00042460422264412045, 0.00018793351773638278, 3.92431829823181e-05,
    -0.00011129012273158878, -5.990477802697569e-05, -1.2502105164458044e-05,
)  # fmt: skip
_SERF_FLAT = (
    -1.0336353778839111, -1.0412312746047974, -0.23445479571819305, 0.023074381053447723, 0.018953392282128334,
    -0.00415576808154583, -0.0006959809688851237, 0.0001842853962443769, -3.8343347114278004e-05,
    -7.740083674434572e-05, 2.8835347620770335e-05, 2.276805753353983e-05, 4.8160409278352745e-06,
)  # fmt: skip
_SERF_BELOW64 = (
    0.8672715185503361, -0.45811911615525935, 0.1457333499300621, 0.0007302279165584271, -0.04138529453768359,
    0.0381868687946651, -0.02463248504900432, 0.013062163997598799, -0.005849492512220161, 0.0020915233691352814,
    -0.00041732186206513814, -0.00018969172809932687, 0.0003240539627570261, -0.0002852549548868471,
    0.00020556882786550956, -0.00013405865373883745, 8.076840855621926e-05, -4.356761549111151e-05,
    2.4322153120754796e-05, -1.754437329917901e-05, 8.176261460942726e-06,
)  # fmt: skip
_SERF_AHEAD64 = (
    0.6382119604727065, -0.7705048823804569, 0.438295391665053, -0.07984967740903884, -0.11145930070594846,
    0.15522375761022073, -0.12670982111770263, 0.08109934246070712, -0.04323358405723945, 0.018828610623577227,
    -0.0056337375513208325, -0.0003317674513108353, 0.002357476182661644, -0.0025565484160779807,
    0.0020847336755655224, -0.001487377468009167, 0.0009772152817754552, -0.0006055637806623713,
    0.0003527782259917705, -0.00019047381371608857, 0.00010642235320882435, -6.534105929483629e-05,
    2.4909303452480854e-05,
)  # fmt: skip
_SERF_RISE64 = (
    0.5380882223858073, -0.39118246926941946, 0.07118732906290112, 0.126117517664805, -0.17551468992004177,
    0.1449370401302003, -0.09352486574966262, 0.04997580069636567, -0.02158036251315279, 0.006142205801312483,
    0.000822834953547776, -0.0031350078069572415, 0.003286379609124095, -0.0026524203019228022, 0.0018847045119128871,
    -0.001234761716204339, 0.0007615662271403497, -0.0004455054478226908, 0.00024702356862916125,
    -0.00013209074169799533, 6.980189116916184e-05, -3.1415320445693455e-05, 7.56029784062666e-06,
)  # fmt: skip
_SERF_ABOVE64 = (
    0.13147918467487824, -0.012288615298873607, -0.0012919693299089062, -0.000347595768920472, 0.0005528794334873425,
    -0.0001968857858707644, 3.437203839745425e-05, -2.6448257908353403e-06, 4.529774978763498e-07,
    -4.3416185786714233e-07, 1.8928521367731907e-07, -4.6147922581953416e-08, 3.8240431715070646e-09,
    -3.2342909934207663e-10, 9.736943149136337e-10, 6.128697250120883e-10, 6.402812045550379e-11,
    -2.1593403898927093e-10, -1.15970374181648e-10, -8.098563977275896e-12, 1.7659905698492626e-11,
    8.439626585951915e-12, 1.1171855525208378e-12, -3.982118746558014e-13, -2.1180607016941056e-13,
    -4.3843867677043536e-14, -4.635911302139996e-15, -2.0928379282274824e-16,
)  # fmt: skip
_SERF_FLAT64 = (
    -2.2720119853687737, -1.3888841873225801, -0.0992438079585199, 0.05158175644043892, -0.003385628560699254,
    -0.0029580280157776866, 0.0008232349028670348, 1.8595501574884352e-05, -5.284387002438272e-05,
    9.02224004670855e-06, 1.5340867082382872e-06, -9.326718259134393e-07, 1.169899123144463e-07,
    2.386048521737436e-08, -9.505142027986025e-09, 4.083938997970641e-09, 7.586462921901056e-10,
    -9.449112702430847e-10, -4.469749097113046e-10, -3.7590563080393895e-11, 6.567880745872119e-11,
    3.360478850272991e-11, 4.128440035636404e-12, -1.7442995481765279e-12, -8.09121386328636e-13,
    -1.4771556872708844e-13, -1.3575503223031183e-14, -5.255427526283629e-16,
)  # fmt: skip


def _tanh_exp_exponentials(x: Array) -> tuple[Array, Array, Array, Array, Array, int]:
    """(bounded x, exp(x) as scale and p, exp(-2 exp(x)) as scale and p, shift); the first scale times 2**shift."""
    shift = elementary.format_of(x).spare
    end = _TANH_EXP_END64 if x.dtype == jnp.float64 else _TANH_EXP_END
    bounded = jnp.clip(x, elementary.lowest(x, shift), end)
    scale, p = elementary.exp_parts(bounded, shift=shift)
    return bounded, scale, p, *elementary.exp_parts((scale + scale * p) * -(2.0 ** (1 - shift))), shift


@elementwise
def tanh_exp(x: ArrayLike) -> Array:
    r"""Tanh exponential unit.

    .. math:: \mathrm{tanh\_exp}(x) = x \tanh(e^x)

    Returns
    -------
    array
        Same shape and dtype as `x`; in [-0.3532, inf).

    Notes
    -----
    Value and slope within 4 ulp in float32, 0.6 ulp in bfloat16 and float16, 8 ulp in float64, in the left tail and
    where the slope passes through zero (x = -1.0789), too.

    References
    ----------
    Liu and Di, "TanhExp: a smooth activation function with high convergence speed for lightweight neural networks",
    arXiv:2003.09855.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> tanh_exp(jnp.array([0.0, jnp.inf])).tolist()
    [0.0, inf]
    >>> bool(tanh_exp(-jnp.inf) == 0)
    True
    """
    bounded, scale, p, scale_w, p_w, shift = _tanh_exp_exponentials(x)
    fall = (1 - scale_w) - scale_w * p_w  # 1 - exp(-2 E) with E = exp(x)
    tail = bounded * scale
    tail = (tail + tail * p) * 2.0**-shift  # where E may be subnormal, and tanh(E) is E
    return jnp.where(x < -20, tail, x * (fall / (2 - fall)))


# With E = exp(x) and w = exp(-2 E), the slope is 1 - w (2 (1 + w) - 4 x E) / (1 + w)**2. Below zero that is
# 4 E w (sinh(2 E) / (2 E) - y) / (1 + w)**2, and the bracket (r - y) + (E**2 - exp(-2 r)) q(E**2) with a positive q.
@tanh_exp.derivative
def _tanh_exp_slope(x: Array) -> Array:
    bounded, scale, p, scale_w, p_w, shift = _tanh_exp_exponentials(x)
    E = (scale + scale * p) * 2.0**-shift
    w = scale_w + scale_w * p_w
    below = jnp.minimum(E, 1)
    ahead, rest = _from_root(-bounded, _two_parts(x.dtype, _TANH_EXP_ROOT, _TANH_EXP_ROOT64))
    rise = _rise(E, _TANH_EXP_ROOT_EXP, ahead + rest) * (E + _TANH_EXP_ROOT_EXP)
    rise = rise * elementary.polynomial(below * below, _SINH64 if x.dtype == jnp.float64 else _SINH)
    square = elementary.square_of_one_plus(w)
    left = 4 * scale_w * scale * ((ahead + (rest + rise)) / square)
    left = left + left * p_w
    right = 1 - w * (2 * (1 + w) - 4 * bounded * E) / square
    return jnp.where(x < 0, (left + left * p) * 2.0**-shift, right)


def _serf_exponential(x: Array) -> tuple[Array, Array, Array, int]:
    """(y, t, 2**shift times exp(-y) or exp(-x**2), shift): y = |x| and t the variable of the polynomials above zero."""
    double = x.dtype == jnp.float64
    shift = elementary.format_of(x).spare
    above = jnp.minimum(jnp.where(x < 0, 0, x), 6.25 if double else 4.25)
    y = jnp.where(x < 0, jnp.minimum(-x, -elementary.lowest(x, shift)), 0)
    exponential = elementary.exp(jnp.where(x < 0, -y, -above * above), shift=shift)
    return y, above - (3 if double else 2), exponential, shift


@elementwise
def serf(x: ArrayLike) -> Array:
    r"""Error function of the softplus, times the input.

    .. math:: \mathrm{serf}(x) = x \, \mathrm{erf}(\log(1 + e^x))

    Returns
    -------
    array
        Same shape and dtype as `x`; in [-0.3484, inf).

    Notes
    -----
    Value and slope within 4 ulp in float32, 0.6 ulp in bfloat16 and float16, 8 ulp in float64, in the left tail and
    where the slope passes through zero (x = -1.1931), too.

    References
    ----------
    Nag and Bhattacharyya, "SERF: towards better training of deep neural networks using log-softplus error activation
    function", arXiv:2108.09598.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> serf(jnp.array([0.0, jnp.inf])).tolist()
    [0.0, inf]
    >>> bool(serf(-jnp.inf) == 0)
    True
    """
    double = x.dtype == jnp.float64
    y, t, exponential, shift = _serf_exponential(x)
    u = exponential * 2.0**-shift
    below = elementary.polynomial(jnp.minimum(u, 1) - 0.5, _SERF_BELOW64 if double else _SERF_BELOW)
    above = elementary.polynomial(t, _SERF_ABOVE64 if double else _SERF_ABOVE)
    return jnp.where(x < 0, -y * exponential * below * 2.0**-shift, x * (1 - u * above))


# Below zero the slope is u h (k(u) - y) with k(u) = erf(log(1 + u)) / (u h), which rises from 1, and is r at exp(-r).
@serf.derivative
def _serf_slope(x: Array) -> Array:
    double = x.dtype == jnp.float64
    y, t, exponential, shift = _serf_exponential(x)
    u = exponential * 2.0**-shift
    ahead, rest = _from_root(y, _two_parts(x.dtype, _SERF_ROOT, _SERF_ROOT64))
    rise = _rise(u, _SERF_ROOT_EXP, ahead + rest)
    h = elementary.polynomial(u - 0.5, _SERF_AHEAD64 if double else _SERF_AHEAD, last=3)
    left = ahead * h + (
        rest * h + rise * elementary.polynomial(u - 0.5, _SERF_RISE64 if double else _SERF_RISE, last=3)
    )
    flat = elementary.polynomial(t, _SERF_FLAT64 if double else _SERF_FLAT, last=3)
    return jnp.where(x < 0, exponential * left * 2.0**-shift, 1 - u * flat)


def _curve_near_zero(y: Array, eps: float) -> Array:
    """exp(min(-y, eps)) - 1 + y for y <= 1 and -eps <= 1."""
    y = jnp.minimum(y, 1)
    bent = jnp.minimum(jnp.maximum(y, -eps), 1)
    return bent * bent * elementary.curve(bent) + (y - bent)


@elementwise
def xielu(
    x: ArrayLike, alpha_p: ArrayLike = 0.8, alpha_n: ArrayLike = 0.8, beta: ArrayLike = 0.5, eps: float = -1e-6
) -> Array:
    r"""Expanded integral of the exponential linear unit: its slope is linear above zero and an `elu` below.

    .. math:: \mathrm{xielu}(x) = \beta x + \begin{cases} \alpha_p x^2 & x > 0 \\
        \alpha_n (e^{\min(x, \epsilon)} - 1 - x) & x \le 0 \end{cases}

    Parameters
    ----------
    alpha_p, alpha_n : float or array, optional
        What the curve is multiplied with above and below zero. The published layer has ``alpha_n > beta``. Arrays
        broadcast to `x` (one value a channel, say) and can be differentiated with respect to.
    beta : float or array, optional
        The slope at zero, but for `eps`.
    eps : float
        A number that is 0 or below. Between it and zero the curve is straight, and its slope ``beta - alpha_n``. The
        published formula has 0, its implementation -1e-6, for which ``xielu(0)`` is ``-1e-6 alpha_n``.

    Raises
    ------
    TypeError
        If an argument is not an array of real numbers or has a unit, or `eps` is not a number.
    ValueError
        If `eps` is above 0, or an array does not broadcast to the shape of `x`.

    Notes
    -----
    Below zero, value and slope are sums of two terms, ``beta`` times x or 1 and the rest, that cancel at points which
    depend on the parameters: there they are right within 4 ulp (float64: 8 ulp) of the larger of the two, elsewhere
    within 4 ulp (8 ulp) of themselves. The slope at the kink is that of the left side.

    References
    ----------
    Huang and Schlag, "Deriving activation functions using integration", arXiv:2411.13010.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> y = xielu(jnp.array([-1.0, 2.0]))
    >>> bool(jnp.allclose(y, jnp.array([-0.2057, 4.2]), atol=1e-4))
    True
    """
    for name, value in (('alpha_p', alpha_p), ('alpha_n', alpha_n), ('beta', beta)):
        _checks.hyperparameter('xielu', name, value)
    _checks.number('xielu', 'eps', eps, at_most=0)
    above, y = jnp.where(x > 0, x, 0), jnp.where(x > 0, 0, -x)
    steepness = jnp.subtract(alpha_n, beta)  # of the straight line in the far left; where it is 0, 0 * inf is none
    line = jnp.where(steepness == 0, 0, steepness * y)
    bent = jnp.maximum(y, -eps)
    left = alpha_n * _curve_near_zero(y, eps) - beta * jnp.minimum(y, 1)
    left = jnp.where(bent > 1, alpha_n * elementary.expm1(-bent) + line, left)
    return jnp.where(x > 0, above * (alpha_p * above + beta), left)


@xielu.derivative
def _xielu_slope(
    x: Array, alpha_p: ArrayLike = 0.8, alpha_n: ArrayLike = 0.8, beta: ArrayLike = 0.5, eps: float = -1e-6
) -> Array:
    bent = jnp.where(x >= eps, -1, elementary.expm1(jnp.minimum(x, 0)))
    return jnp.where(x > 0, 2 * alpha_p * x, alpha_n * bent) + beta


@xielu.derivative(by='alpha_p')
def _xielu_by_alpha_p(x: Array, **hyper: Any) -> Array:
    return jnp.where(x <= 0, 0, x * x)


@xielu.derivative(by='alpha_n')
def _xielu_by_alpha_n(x: Array, *, eps: float = -1e-6, **hyper: Any) -> Array:
    y = jnp.where(x > 0, 0, -x)
    bent = jnp.maximum(y, -eps)
    below = jnp.where(bent > 1, elementary.expm1(-bent) + y, _curve_near_zero(y, eps))
    return jnp.where(x > 0, 0, below)


@xielu.derivative(by='beta')
def _xielu_by_beta(x: Array, **hyper: Any) -> Array:
    return x
