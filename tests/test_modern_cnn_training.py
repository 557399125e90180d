"""The training of the ModernCNN example: its steps, what they promise, and what happens when a loss is not finite."""

import dataclasses

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loading import EXAMPLE, files_of

SIZE = (8, 8, 3)
TINY = {'width': 4, 'batch_size': 16, 'dropout': 0.0, 'augment': False}


@pytest.fixture(scope='module')
def example():
    """Imports a file of the example, once for all tests."""
    jax.config.update('jax_disable_most_optimizations', True)  # nothing here runs for long
    with files_of(EXAMPLE) as load:
        yield load
    jax.config.update('jax_disable_most_optimizations', False)


@pytest.fixture(scope='module')
def made(example):
    """Trainers of tiny images with three classes, each beside its state at first: compiled once for all tests."""
    return {}


@pytest.fixture
def make(example, made):
    """A trainer with these settings, as new."""

    def make(steps=20, fresh=False, **settings):
        key = steps, *sorted(settings.items())
        if fresh or key not in made:
            given = example('options').Settings(**{**TINY, **settings})
            trainer = example('training').Trainer(given, classes=3, in_size=SIZE, steps=steps)
            if fresh:
                return trainer
            made[key] = trainer, host(trainer.state())
        trainer, state = made[key]
        trainer.load(trainer.devices.replicate(state))
        return trainer

    return make


@pytest.fixture
def dataset(example):
    data = example('data')
    rng = np.random.default_rng(0)
    y = (np.arange(60) % 3).astype(np.int32)
    x = rng.integers(0, 80, (60, *SIZE), np.uint8) + (y * 70).astype(np.uint8)[:, None, None, None]
    return data.Dataset(data.Images(x[:40], y[:40]), data.Images(x[40:], y[40:]), ('a', 'b', 'c'), flips=False)


def batch_of(dataset, count=16, start=0):
    return type(dataset.train)(dataset.train.x[start : start + count], dataset.train.y[start : start + count])


def host(tree):
    """A copy: the memory of a state is used again by the next step."""
    return jax.tree.map(np.array, tree)


def close(left, right, atol=1e-5):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol), left, right)


@pytest.mark.parametrize(('ema', 'compiled_steps'), [(0.0, 2), pytest.param(0.9, 4, marks=pytest.mark.slow)])
def test_a_run_traces_twice(example, make, dataset, caplog, ema, compiled_steps):
    """Where averaged weights get batch statistics of their own, that is compiled for its first batch and the others."""
    training = example('training')
    trainer = make(steps=5, fresh=True, epochs=2, ema=ema)
    traces = []
    inner = trainer._with_values
    trainer._with_values = lambda values: traces.append(1) or inner(values)
    with jax.log_compiles():
        fitted = training.fit(trainer, dataset)  # 40 images in batches of 16, and 20 to evaluate: both leave a rest
    assert len(traces) == 2
    compiled = [record.getMessage() for record in caplog.records if 'Finished XLA compilation' in record.getMessage()]
    # brainstate's name for what it jits
    assert sum('jaxpr_call' in message for message in compiled) == compiled_steps, compiled
    assert [row.step for row in fitted.history] == [3, 5]
    # the images that only fill up the last batch don't count
    probabilities = fitted.evaluation.probabilities
    assert probabilities.shape == (20, 3)
    wanted = -np.log(probabilities[np.arange(20), dataset.test.y]).mean()
    np.testing.assert_allclose(fitted.evaluation.loss, wanted, rtol=1e-4)
    for row, images in zip(fitted.history, (48, 32), strict=True):  # all images of the epoch count alike
        assert row.train_accuracy * images == pytest.approx(round(row.train_accuracy * images), abs=1e-3)


def test_a_step_gives_its_memory_back_and_counts_the_statistics_once(make, dataset):
    trainer = make()
    batch = batch_of(dataset)
    before = trainer.state()
    weight, mean = before['model']['conv1/weight']['weight'], np.array(before['model']['bn1/running_mean']).ravel()
    model = trainer.model
    seen = np.asarray(model.conv1(jnp.asarray(batch.x / 255, jnp.float32)), np.float64)
    trainer.train(batch)
    assert weight.is_deleted()
    after = np.asarray(trainer.state()['model']['bn1/running_mean']).ravel()
    np.testing.assert_allclose(after, 0.9 * mean + 0.1 * seen.mean(axis=(0, 1, 2)), rtol=1e-4, atol=1e-6)
    trainer.evaluate(dataset.test)
    np.testing.assert_array_equal(np.asarray(trainer.state()['model']['bn1/running_mean']).ravel(), after)
    step = trainer.finish()
    assert (step.step, trainer.step) == (1, 1)
    assert trainer.finish() is None


def test_saved_and_loaded_goes_on_bit_by_bit(make, dataset):
    options = {'ema': 0.9, 'dropout': 0.3, 'augment': True}
    batches = [batch_of(dataset, start=start) for start in (0, 8, 16)]
    trainer = make(**options)
    for batch in batches:
        trainer.train(batch)
    whole = host(trainer.state())
    trainer = make(**options)
    trainer.train(batches[0])
    saved = host(trainer.state())
    trainer = make(**options)
    trainer.load(trainer.devices.replicate(saved))
    assert trainer.step == 1
    for batch in batches[1:]:
        trainer.train(batch)
    jax.tree.map(np.testing.assert_array_equal, whole, host(trainer.state()))


SGD = {'optimizer': 'sgd', 'learning_rate': 0.1}


@pytest.mark.slow
def test_micro_batches_learn_as_one_batch(make, dataset):
    one, four = (make(norm='group', accumulate=parts, **SGD) for parts in (1, 4))
    for trainer in one, four:
        for start in 0, 8:
            trainer.train(batch_of(dataset, start=start))
    close(host(one.state()), host(four.state()))


@pytest.mark.slow
def test_micro_batches_of_a_batch_norm(make, dataset):
    """Each is normalized by its own moments, as virtual batches are; those of all move the statistics, once."""
    batch = batch_of(dataset, 32)
    choices = ('batch', 1), ('ghost', 1), ('batch', 2)
    one, ghost, two = (make(norm=norm, accumulate=parts, batch_size=32, **SGD) for norm, parts in choices)
    one.train(batch)
    two.train(batch)
    order = np.r_[0:32:2, 1:32:2]  # a micro-batch takes every second image, a virtual batch those side by side
    ghost.train(type(batch)(batch.x[order], batch.y[order]))
    states = [host(trainer.state()) for trainer in (one, ghost, two)]
    weights = [{path: state['model'][path] for path in two._weights} for state in states]
    close(weights[1], weights[2])
    # the input of the first norm doesn't depend on how a batch is divided: its statistics are those of one batch
    for name in 'bn1/running_mean', 'bn1/running_var':
        close(states[0]['model'][name], states[2]['model'][name], atol=1e-6)
    for state in states[1:]:
        assert state['epoch']['images'] == 32
    np.testing.assert_allclose(states[1]['epoch']['loss'], states[2]['epoch']['loss'], rtol=1e-5)


@pytest.mark.slow
def test_averaged_weights_are_evaluated_with_statistics_of_their_own(example, make, dataset):
    trainer = make(ema=0.9, dropout=0.3, augment=True)
    first = np.array(trainer.state()['model']['fc2/weight']['weight'])
    weights = []
    for start in 0, 8, 16:
        trainer.train(batch_of(dataset, start=start))
        weights.append(np.array(trainer.state()['model']['fc2/weight']['weight']))
    wanted = first
    for step, weight in enumerate(weights, 1):
        keep = min(0.9, (1 + step) / (10 + step))
        wanted = keep * wanted + (1 - keep) * weight
    trainer.recalibrate(dataset.train)
    averaged = trainer.state()['ema']
    np.testing.assert_allclose(averaged['fc2/weight']['weight'], wanted, atol=1e-6)
    kernel = jnp.asarray(averaged['conv1/weight']['weight'])
    whole = jnp.asarray(dataset.train.x[:32] / 255, jnp.float32)
    seen = jax.lax.conv_general_dilated(whole, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    np.testing.assert_allclose(np.ravel(averaged['bn1/running_mean']), seen.mean((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(np.ravel(averaged['bn1/running_var']), seen.var((0, 1, 2)), atol=1e-5)
    # the state of the training is as it was
    assert not np.allclose(np.ravel(trainer.state()['model']['bn1/running_mean']), seen.mean((0, 1, 2)), atol=1e-3)
    assert np.isfinite(trainer.evaluate(dataset.test).loss)


@pytest.mark.slow
def test_bfloat16_computes_low_and_keeps_high(make, dataset):
    wide, low = make(), make(precision='bfloat16')
    dtypes = set()
    build = low._with_values

    def watched(values):
        model = build(values)
        model.dropout = lambda x: (dtypes.add(str(x.dtype)), x)[1]
        return model

    low._with_values = watched
    for trainer in wide, low:
        trainer.train(batch_of(dataset))
    low.evaluate(dataset.test)
    assert dtypes == {'bfloat16'}
    kinds = {str(leaf.dtype) for leaf in jax.tree.leaves(low.state()) if jnp.issubdtype(leaf.dtype, jnp.floating)}
    assert kinds == {'float32'}
    assert low.finish().loss == pytest.approx(wide.finish().loss, rel=0.05)


def test_only_weights_decay(example, make):
    optimizer = example('optimizer')
    trainer = make(fresh=True, activation='prelu', norm='dynamic_tanh')
    model = {path: trainer.state()['model'][path] for path in trainer._weights}
    found = jax.tree_util.tree_map_with_path(optimizer.decays, model)
    decaying = {path for path, flags in found.items() if any(jax.tree.leaves(flags))}
    assert decaying == {f'{layer}/weight' for layer in ('conv1', 'conv2', 'fc1', 'fc2')}
    assert found['fc1/weight'] == {'weight': True, 'bias': False}


def test_learning_rate_and_clipping(example):
    options, optimizer = example('options'), example('optimizer')
    rate = optimizer.schedule(options.Settings(learning_rate=0.4, warmup=4), 20)
    np.testing.assert_allclose([rate(step) for step in (0, 2, 4, 12, 20)], [0, 0.2, 0.4, 0.2, 0], atol=1e-6)
    settings = options.Settings(optimizer='sgd', learning_rate=1.0, weight_decay=0.0, clip=0.5)
    rule = optimizer.make(settings, 1000)
    weight = {'weight': jnp.zeros(2)}
    updates, _ = rule.update({'weight': jnp.array([30.0, 40.0])}, rule.init(weight), weight)
    # Nesterov's first step is 1 + momentum times the gradient
    np.testing.assert_allclose(updates['weight'], -1.9 * np.array([0.3, 0.4]), rtol=1e-5)


def test_label_smoothing(example):
    training = example('training')
    logits, label = jnp.array([[2.0, 0.0, -1.0]], jnp.bfloat16), jnp.array([0])
    logs = jax.nn.log_softmax(logits.astype(jnp.float32))[0]
    loss = training.cross_entropy(logits, label, 0.3)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, [-(0.8 * logs[0] + 0.1 * logs[1] + 0.1 * logs[2])], rtol=1e-6)


@pytest.mark.parametrize(
    ('place', 'words'),
    [
        ('conv2/weight', ('the loss is nan at step 2', 'in the output of conv2')),
        ('fc2/weight', ('the loss is nan at step 2', 'in the output of fc2')),
    ],
)
def test_a_loss_that_is_not_finite_stops_the_run(example, make, dataset, place, words):
    training = example('training')
    trainer = make()
    trainer.train(batch_of(dataset))
    state = host(trainer.state())
    state['model'][place]['weight'].flat[0] = np.nan
    trainer.finish()
    trainer.load(trainer.devices.replicate(state))
    trainer.train(batch_of(dataset, start=8))
    with pytest.raises(training.Diverged) as caught:
        trainer.train(batch_of(dataset, start=16))
    for word in words:
        assert word in str(caught.value)
    # nothing was learned from the batch, nor from the one after it
    jax.tree.map(np.testing.assert_array_equal, host(trainer._state) | {'sound': True}, state)
    with pytest.raises(training.Diverged):
        trainer.state()


@pytest.mark.slow
def test_a_weight_that_is_not_finite_stops_the_run(make, example, dataset):
    """The loss and the gradient are: the step is too large."""
    trainer = make(fresh=True, optimizer='sgd', learning_rate=3e38, weight_decay=10.0, epochs=1)
    before = host(trainer.state())
    trainer.train(batch_of(dataset))
    with pytest.raises(
        example('training').Diverged, match=r'what was learned is no longer finite at step 1: it began in \w+/weight'
    ):
        trainer.finish()
    jax.tree.map(np.testing.assert_array_equal, host(trainer._state) | {'sound': True}, before)


def test_held_out_images_whose_loss_is_not_finite(example, make, dataset, monkeypatch):
    training, trainer = example('training'), make(epochs=2)
    wrong = training.Evaluation(np.nan, np.zeros((20, 3)))
    monkeypatch.setattr(trainer, 'evaluate', lambda images: wrong)
    with pytest.raises(training.Diverged, match='the loss of the held-out images is nan after step 3'):
        training.fit(trainer, dataset)


def test_a_run_that_was_stopped_is_not_gone_on_with_where_it_stops_again(example, make, dataset):
    training, trainer = example('training'), make(epochs=2)
    trainer.train(batch_of(dataset))
    trainer.finish()
    assert training.fit(trainer, dataset, stop=lambda step: step >= 1) == ([], None)
    assert trainer.step == 1


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_stops_the_run(example, make, dataset, monkeypatch):
    @jax.custom_vjp
    def steep(x):
        return x

    steep.defvjp(lambda x: (x, None), lambda _, g: (g * jnp.inf,))
    training = example('training')
    trainer = make(fresh=True)
    build = trainer._with_values

    def steeper(values):
        model = build(values)
        act2 = model.act2
        model.act2 = Steep(lambda x: steep(act2(x)))
        return model

    class Steep(brainstate.nn.Module):
        def __init__(self, function):
            super().__init__()
            self.update = function

    trainer._with_values = steeper
    trainer.train(batch_of(dataset))
    with pytest.raises(training.Diverged, match=r'the gradient is no longer finite at step 1.*by the output of bn2'):
        trainer.finish()


def test_norms_are_those_that_the_options_name(example):
    options, model = example('options'), example('model')
    assert set(model.NORMS) == set(options.NORMS)
    assert set(options.ACTIVATING) <= set(options.NORMS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('norm', 'activation'),
    [
        ('rms', 'prelu'),
        ('batch_renorm', 'rrelu'),
        ('filter_response', 'identity'),
        ('evonorm_s0', 'gelu_tanh'),
        ('none', 'softmax'),
    ],
)
def test_norms_and_activations_train(make, dataset, norm, activation):
    trainer = make(norm=norm, activation=activation, dropout=0.2)
    before = host(trainer.state()['model'])
    trainer.train(batch_of(dataset))
    assert np.isfinite(trainer.finish().loss)
    after = host(trainer.state()['model'])
    for path in trainer._weights:
        moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), before[path], after[path])
        assert any(jax.tree.leaves(moved)), path


def test_every_norm_is_made(example):
    model = example('model')
    for norm in example('options').NORMS:
        made = model.ModernCNN(3, width=4, norm=norm, in_size=SIZE)
        centred = norm in model.CENTRING
        assert ('bias' in made.conv1.weight.value) != centred, norm


@pytest.mark.parametrize(
    ('name', 'words'),
    [
        ('geluu', ('gelu',)),
        ('glu', ('makes 1 channels of 2',)),
        ('crelu', ('makes 4 channels of 2',)),
        ('threshold', ('needs more than its input',)),
        ('gated_tanh', ('needs more than its input',)),
        ('logsumexp', ('no activation of single elements',)),
    ],
)
def test_what_is_no_activation_of_an_image(example, name, words):
    with pytest.raises(ValueError) as caught:
        example('model').activation_layer(name, 2)
    for word in words:
        assert word in str(caught.value)


def test_max_pool_is_that_of_torch(example):
    torch = pytest.importorskip('torch')
    max_pool = example('model').max_pool
    rng = np.random.default_rng(0)
    x = rng.integers(0, 3, (2, 7, 9, 3)).astype(np.float32)  # with many ties
    x[0, 0, 0, 0] = np.nan
    weight = rng.random((2, 3, 4, 3), np.float32)
    gradient = jax.grad(lambda x: jnp.sum(max_pool(x) * weight))(x)
    wanted = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    pooled = torch.nn.functional.max_pool2d(wanted, 2)
    (pooled * torch.tensor(weight.transpose(0, 3, 1, 2))).sum().backward()
    np.testing.assert_array_equal(max_pool(x), pooled.detach().numpy().transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(gradient, wanted.grad.numpy().transpose(0, 2, 3, 1))


def test_settings_are_checked_together(example, make):
    options = example('options')
    with pytest.raises(options.Problem, match='--warmup: must be below the 20 steps'):
        make(warmup=20)
    for change, words in [
        ({'accumulate': 3}, '--accumulate'),
        ({'accumulate': 64}, 'at least 2'),
        ({'norm': 'ghost', 'batch_size': 24}, 'multiple of'),
        ({'norm': 'evonorm_b0', 'ema': 0.9}, '--ema'),
        ({'limit': 2000}, '--limit'),
    ]:
        with pytest.raises(options.Problem, match=words):
            options.check_settings(dataclasses.replace(options.Settings(), **change))
