"""What the ModernCNN example shows and leaves behind, and how it compares norms and activations."""

import csv
import gc
import importlib
import io
import json
import re
import resource

import numpy as np
import pytest


@pytest.fixture
def report(example):
    return example('report')


@pytest.fixture
def compare(example):
    return example('compare')


class Terminal(io.StringIO):
    def isatty(self):
        return True


def epochs(report, count, accuracy=0.9):
    return [
        report.Epoch(e, 5 * e, 1 / e, 0.5, 2 / e, accuracy * (1 - 0.5**e), 1e-3 / e, 2.0, 50.0)
        for e in range(1, count + 1)
    ]


def rows(folder):
    with (folder / 'metrics.csv').open(encoding='utf-8') as file:
        return list(csv.DictReader(file))


def events(folder):
    """All TensorBoard events, in the order of writing."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted((folder / 'tensorboard').iterdir(), key=lambda path: path.stat().st_mtime_ns):
        data, at = path.read_bytes(), 0
        while at < len(data):  # length, its checksum, the event, its checksum
            size = int.from_bytes(data[at : at + 8], 'little')
            found.append(Event.FromString(data[at + 12 : at + 12 + size]))
            at += size + 16
    return found


def seen(events, tag):
    """Step and value of each event of a tag."""
    return [(event.step, value.simple_value) for event in events for value in event.summary.value if value.tag == tag]


def classified(classes, count=300, seed=0):
    """Labels and probabilities, four of five right."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, count).astype(np.int32)
    answers = np.where(rng.random(count) < 0.8, y, rng.integers(0, classes, count))
    probabilities = np.full((count, classes), 0.1 / classes, np.float32)
    probabilities[np.arange(count), answers] += 0.9
    return y, probabilities


def is_picture(path):
    from PIL import Image

    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert('RGB'))
    assert pixels.std() > 5
    return pixels.shape[:2]


# the run


def test_a_log_gets_a_plain_line_an_epoch(report, tmp_path, capsys):
    with report.Reporter(tmp_path, epochs=3, steps=15, batch_size=20) as reporter:
        for row in epochs(report, 3):
            for step in range(5):
                reporter.step(importlib.import_module('training').Step(step, 0.5, 0.25, 1e-3))
            reporter.epoch(row)
        reporter.say('a word')
    out, err = capsys.readouterr()
    assert err == '' and '\r' not in out
    *lines, last = out.splitlines()
    assert len(lines) == 3 and last == 'a word'
    assert lines[0] == (
        'epoch 1/3 · loss 1.0000, accuracy 50.00% · held out: loss 2.0000, accuracy 45.00% · 50 images/s · 0:00:04 left'
    )
    assert lines[2].endswith('50 images/s')


def test_a_terminal_gets_a_bar(report, example, capsys):
    step, screen = example('training').Step, Terminal()
    with report.Reporter(None, epochs=1, steps=50, batch_size=20, step=25, file=screen) as reporter:
        reporter._bar.mininterval = 0  # else steps as fast as these are not all drawn
        for number in range(26, 51):
            reporter.step(step(number, 0.5, 0.25, 1e-3))
        reporter.epoch(epochs(report, 1)[0])
    drawn = screen.getvalue().split('\r')
    assert '500/1000' in drawn[1]
    (some,) = [line for line in drawn if '900/1000' in line]
    assert 'loss 0.500, accuracy 25.0%, learning rate 1.0e-03' in some
    assert re.search(r'\[\d\d:\d\d<\d\d:\d\d, +[\d.]+\w*image/s', some)  # time so far, time left, speed
    assert capsys.readouterr().out.startswith('epoch 1/1')


def test_the_numbers_are_kept_and_gone_on_with(report, tmp_path):
    history = epochs(report, 4)
    with report.Reporter(tmp_path, epochs=4, steps=20, batch_size=20) as reporter:
        for row in history[:3]:
            reporter.epoch(row)
    assert [row['epoch'] for row in rows(tmp_path)] == ['1', '2', '3']
    # the checkpoint was of step 12, in the third epoch; its history comes back from JSON
    saved = json.loads(json.dumps(history[:2]))
    with report.Reporter(tmp_path, epochs=4, steps=20, batch_size=20, step=12, history=saved) as reporter:
        assert [row['epoch'] for row in rows(tmp_path)] == ['1', '2']
        for row in history[2:]:
            reporter.epoch(row)
    assert [row['epoch'] for row in rows(tmp_path)] == ['1', '2', '3', '4']
    assert tuple(map(float, rows(tmp_path)[3].values())) == pytest.approx(history[3], rel=1e-5)
    assert not list(tmp_path.glob('.part*'))

    written = events(tmp_path)
    loss = seen(written, 'loss/test')
    assert [step for step, _ in loss] == [5, 10, 15, 15, 20]
    assert loss[-1][1] == pytest.approx(history[3].test_loss)
    # with this TensorBoard leaves out what came after step 12 in the first run
    starts = [event.step for event in written if event.HasField('session_log')]
    assert starts[-1] == 13


def test_each_step_is_an_event(report, example, tmp_path):
    with report.Reporter(tmp_path, epochs=1, steps=3, batch_size=20) as reporter:
        for number in 1, 2, 3:
            reporter.step(example('training').Step(number, 1 / number, 0.25, 1e-3))
    written = events(tmp_path)
    assert seen(written, 'loss/step') == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert seen(written, 'accuracy/step')[0] == (1, 0.25)
    assert seen(written, 'learning_rate/step')[0] == (1, pytest.approx(1e-3))


def test_events_on_a_disk_that_is_full(report, example, tmp_path, capfd):
    """As far as one can be had without being root: no file may grow beyond a size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def run(reporter):
        with reporter:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
            for number in range(1000):
                reporter.step(example('training').Step(number, 0.5, 0.25, 1e-3))

    try:
        with pytest.raises(example('options').Problem, match=r'can not write .*tfevents.*: File too large') as error:
            run(report.Reporter(tmp_path, epochs=1, steps=1000, batch_size=20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert '\n' not in str(error.value)
    gc.collect()
    assert capfd.readouterr().err == ''


def test_other_hosts_are_quiet(report, tmp_path, capsys):
    with report.Reporter(tmp_path, epochs=1, steps=5, batch_size=20, quiet=True, file=Terminal()) as reporter:
        reporter.epoch(epochs(report, 1)[0])
        reporter.say('a word')
    assert capsys.readouterr() == ('', '') and not list(tmp_path.iterdir())


def test_a_file_is_whole_or_as_it_was(report, example, tmp_path):
    path = tmp_path / 'file'
    path.write_text('before')

    class Stopped(BaseException):
        pass

    def write(error):
        with report.whole(path) as part:
            part.write_text('half')
            raise error

    with pytest.raises(Stopped):
        write(Stopped())
    with pytest.raises(example('options').Problem, match=r'can not write .*file: the disk is full'):
        write(OSError(28, 'the disk is full'))
    assert path.read_text() == 'before' and [p.name for p in tmp_path.iterdir()] == ['file']


# pictures and tables


@pytest.mark.parametrize('count', [1, 12])
def test_curves(report, tmp_path, count):
    report.draw_curves(tmp_path / 'curves.png', epochs(report, count))
    height, width = is_picture(tmp_path / 'curves.png')
    assert width > 2 * height


@pytest.mark.parametrize('classes', [2, 10, pytest.param(100, marks=pytest.mark.slow)])
def test_confusion_and_samples(report, tmp_path, classes):
    names = [f'class_${number}$ ' + 'x' * (number % 20) for number in range(classes)]
    y, probabilities = classified(classes)
    y[y == 1] = 0  # there are no images of this class
    table = report.confusion(y, probabilities.argmax(-1), classes)
    assert table.sum() == 300 and table[0].sum() == np.sum(y == 0) and table[1].sum() == 0
    report.draw_confusion(tmp_path / 'confusion.png', table, names)
    height, _ = is_picture(tmp_path / 'confusion.png')
    assert height > {2: 300, 10: 900, 100: 1900}[classes]  # each class has room for its numbers
    x = np.random.default_rng(0).integers(0, 256, (300, 8, 8, 1 if classes == 2 else 3)).astype(np.uint8)
    report.draw_samples(tmp_path / 'samples.png', x, y, probabilities, names)
    is_picture(tmp_path / 'samples.png')
    report.draw_samples(tmp_path / 'few.png', x[:3], y[:3], probabilities[:3], names)
    assert is_picture(tmp_path / 'few.png')[0] < is_picture(tmp_path / 'samples.png')[0]


@pytest.mark.parametrize(('right', 'wrong'), [(0, 3), (2, 30), (20, 0), (5, 15)])
def test_no_cell_of_the_samples_is_empty(report, tmp_path, monkeypatch, right, wrong):
    figures = []
    monkeypatch.setattr(report, 'save_figure', lambda figure, path: figures.append(figure))
    y, answers = np.zeros(right + wrong, int), np.array([0] * right + [1] * wrong)
    x = np.zeros((len(y), 4, 4, 3), np.uint8)
    report.draw_samples(tmp_path / 'samples.png', x, y, np.eye(2)[answers], ['a', 'b'])
    assert all(axes.images for axes in figures[0].axes)
    assert len(figures[0].axes) == (right + wrong if right + wrong < 8 else (right + wrong) // 8 * 8)


def test_the_confusion_in_words(report):
    table = np.array([[8, 2, 0], [0, 0, 0], [1, 0, 3]])
    lines = report.describe_confusion(table, ['cat', 'a long class name', 'dog']).splitlines()
    assert lines[0].split() == ['cat', 'a', 'long', 'cl…', 'dog', 'right']
    assert lines[1].split() == ['cat', '8', '2', '·', '80.0%']
    assert lines[2].split()[-1] == '-'
    assert lines[4] == 'mistakes: cat taken for a long class name: 2; dog taken for cat: 1'
    assert len({len(line) for line in lines[:4]}) == 1
    many = report.describe_confusion(np.ones((30, 30), int), [str(number) for number in range(30)])
    assert many.startswith('mistakes: ') and many.endswith('and 862 more kinds')
    assert report.describe_confusion(np.eye(30, dtype=int), [''] * 30) == 'mistakes: none'


def test_the_summary(report):
    text = report.summary({'batch_size': 64}, epochs(report, 3), 12345, '2 cpu devices')
    for line in 'batch size +64', 'parameters +12,345', 'devices +2 cpu', '0:00:06', 'images a second +50', '78.75%':
        assert re.search(line, text), line


# which works best


class Trained:
    """In place of the training: notes what is asked for."""

    def __init__(self, report, diverged=None):
        self.report, self.diverged, self.asked = report, diverged, []

    def __call__(self, settings):
        key = settings.norm, settings.activation, settings.seed
        self.asked.append(key)
        if key == self.diverged:
            raise importlib.import_module('training').Diverged('the loss is nan at step 3')
        best = {'none': 0.6, 'layer': 0.898}.get(settings.norm, 0.9)
        return epochs(self.report, 10, best + 0.01 * settings.seed)


def test_mean_and_spread(compare, report, example, tmp_path, capsys):
    settings = example('options').Settings(seed=1)
    results = compare.compare('norm', ('layer', 'none', 'batch', 'layer'), 3, settings, tmp_path, Trained(report))
    assert [result.name for result in results] == ['batch', 'layer', 'none']
    finals = 100 * np.array([0.91, 0.92, 0.93]) * (1 - 0.5**10)
    assert results[0].accuracies == pytest.approx(finals)
    assert (results[0].mean, results[0].spread) == pytest.approx((finals.mean(), finals.std(ddof=1)))
    lines = compare.table('norm', results).splitlines()
    assert lines[1].split() == ['batch', '91.91', '±', '1.00%', '90.91%', '92.91%', '0.2000', '20.0', 's', '3']
    assert 'sample standard deviation' in lines[4]
    assert lines[5] == 'Between batch and layer the difference is within the spread: no winner there.'
    assert lines[6] == 'batch is ahead of none by more than the spread.'
    assert 'few seeds' in lines[7]
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 9 and out[0].startswith('1/9 norm layer, seed 1, trained: 90.71%')
    is_picture(tmp_path / 'compare.png')


def test_one_seed_has_no_spread(compare, report, example, tmp_path):
    results = compare.compare('norm', (), 1, example('options').Settings(), tmp_path, Trained(report))
    assert {result.name for result in results} == set(compare.CHOICES['norm'])
    text = compare.table('norm', results)
    assert '±' not in text and 'One seed says nothing about the spread' in text


def test_a_comparison_goes_on_where_it_was(compare, report, example, tmp_path):
    options = example('options')
    arguments = 'activation', ('relu', 'gelu'), 2, options.Settings(), tmp_path
    train = Trained(report)

    class Killed(BaseException):
        pass

    def killed(settings):
        if len(train.asked) == 3:
            raise Killed
        return train(settings)

    with pytest.raises(Killed):
        compare.compare(*arguments, killed)
    kept = compare.compare(*arguments, train)
    assert train.asked == [('batch', name, seed) for name in ('relu', 'gelu') for seed in (0, 1)]
    assert [result.runs for result in kept] == [result.runs for result in compare.compare(*arguments, train)]
    assert len(train.asked) == 4
    # more seeds or choices train only what is new
    compare.compare('activation', ('gelu', 'silu'), 3, options.Settings(), tmp_path, train)
    assert len(train.asked) == 4 + 1 + 3
    with pytest.raises(options.Problem, match=r'other settings: width \(64 there, 8 here\); go on with the same ones'):
        compare.compare('activation', ('gelu',), 1, options.Settings(width=8), tmp_path, train)
    whole = json.loads((tmp_path / 'compare.json').read_text())
    key = next(iter(whole['runs']))
    damaged = [{}, [], {'epochs': []}, {'epochs': [[1]] * 10}, {'epochs': None}, {'diverged': 3}]
    for text in '{', *(json.dumps({**whole, 'runs': {**whole['runs'], key: run}}) for run in damaged):
        (tmp_path / 'compare.json').write_text(text)
        with pytest.raises(options.Problem, match=r'compare.json. can not be read as a comparison'):
            compare.compare(*arguments, train)


def test_a_run_that_diverged_is_a_result(compare, report, example, tmp_path, capsys):
    train = Trained(report, diverged=('none', 'gelu', 1))
    for _ in range(2):
        results = compare.compare('norm', ('batch', 'none'), 2, example('options').Settings(), tmp_path, train)
    assert len(train.asked) == 4
    assert results[1].diverged == ['the loss is nan at step 3'] and len(results[1].runs) == 1
    assert '1 (and 1 diverged)' in compare.table('norm', results)
    assert 'none, seed 1, trained before: the loss is nan at step 3' in capsys.readouterr().out
    alone = Trained(report, diverged=('none', 'gelu', 0))
    (tmp_path / 'alone').mkdir()
    results = compare.compare('norm', ('none',), 1, example('options').Settings(), tmp_path / 'alone', alone)
    assert compare.table('norm', results).endswith('No run came to its end.')


def test_choices_are_checked_before_the_first_is_trained(compare, report, example, tmp_path):
    options, train = example('options'), Trained(report)
    settings = options.Settings(batch_size=20)
    with pytest.raises(options.Problem, match='ghost'):
        compare.compare('norm', ('batch', 'ghost'), 2, settings, tmp_path, train)
    assert train.asked == [] and not list(tmp_path.iterdir())
    # a norm that was made to need no activation is trained without one
    compare.compare('norm', ('batch', 'evonorm_s0'), 1, settings, tmp_path, train)
    assert train.asked == [('batch', 'gelu', 0), ('evonorm_s0', 'identity', 0)]
