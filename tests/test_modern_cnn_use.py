"""What is done with a trained ModernCNN: predictions for pictures, and files that need no jaxnorm."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loading import EXAMPLE, files_of
from PIL import Image, ImageColor

CLASSES = ['ink', 'paper', 'Ölbild']
SIZE = (8, 12, 3)


@pytest.fixture(scope='module')
def example():
    """Imports a file of the example, once for all tests."""
    with files_of(EXAMPLE) as load:
        yield load


TRAINERS: dict[Path, Any] = {}


@pytest.fixture(scope='module')
def save(example, tmp_path_factory):
    """Saves a run as train.py does, as if it had been trained: nothing is as it was at the start."""

    def run(step: int = 5, wrong: float = 0.0, **settings) -> Path:
        import jax

        options, training, checkpoint = map(example, ('options', 'training', 'checkpoint'))
        chosen = options.Settings(**{'width': 4, 'batch_size': 8, **settings})
        trainer = training.Trainer(chosen, classes=len(CLASSES), in_size=SIZE, steps=5)
        state, rng = trainer.state(), np.random.default_rng(0)
        for part in 'model', 'ema':
            state[part] = jax.tree.map(lambda v: v + rng.uniform(0.1, 0.5, v.shape).astype(v.dtype), state[part])
        state['model']['conv2/weight']['weight'] += wrong
        folder = tmp_path_factory.mktemp('run')
        told = {**chosen.as_dict(), 'classes': CLASSES, 'in_size': SIZE}
        with checkpoint.Checkpoints(folder / 'checkpoints', told) as checkpoints:
            checkpoints.save(step, state, {'history': [[1, 5]]}, wait=True)
        trainer.load(state)
        TRAINERS[folder] = trainer
        return folder

    return run


@pytest.fixture(scope='module')
def run(save):
    return save()


def wanted(run: Path, example, x: np.ndarray) -> np.ndarray:
    """The probabilities by the trainer itself."""
    images = example('data').Images(x, np.zeros(len(x), np.int32))
    return TRAINERS[run].evaluate(images).probabilities


def some_images(count: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (count, *SIZE), np.uint8)


def predicted(example, capsys, *arguments) -> tuple[int, list[dict], str]:
    code = example('predict').run([*map(str, arguments), '--json'])
    out, err = capsys.readouterr()
    return code, [json.loads(line) for line in out.splitlines()], err


@pytest.mark.parametrize(
    'settings',
    [{}, {'ema': 0.9}, pytest.param({'precision': 'bfloat16', 'norm': 'none'}, marks=pytest.mark.slow)],
    ids=str,
)
def test_predictions_are_those_of_the_trainer(example, save, capsys, tmp_path, settings):
    run, x = save(**settings), some_images(9)
    for i, pixels in enumerate(x):
        Image.fromarray(pixels).save(tmp_path / f'{i}.png')
    code, lines, err = predicted(example, capsys, run, tmp_path)
    assert (code, err) == (0, '')
    assert [line['path'] for line in lines] == [str(tmp_path / f'{i}.png') for i in range(9)]
    got = np.array([[line['classes'][name] for name in CLASSES] for line in lines])
    tolerance = 2e-2 if 'precision' in settings else 1e-5
    np.testing.assert_allclose(got, wanted(run, example, x), rtol=0, atol=tolerance)
    assert all(list(line['classes'].values()) == sorted(line['classes'].values(), reverse=True) for line in lines)


def square(mode: str, *colors: Any, size: tuple[int, int] = (24, 16)) -> Image.Image:
    """A picture, the right half of another color."""
    picture = Image.new(mode, size, colors[0])
    picture.paste(colors[-1], (size[0] // 2, 0, *size))
    return picture


def framed() -> Image.Image:
    """A wide picture, of which only the middle counts."""
    picture = Image.new('RGB', (600, 16), 'lime')
    picture.paste(square('RGB', 'red', 'blue'), (288, 0))
    return picture


def oriented() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    return exif


MOVING = {'save_all': True, 'append_images': [square('RGB', 'lime')]}
PICTURES = {
    'rgb.png': (square('RGB', 'red', 'blue'), {}, 'red', 'blue'),
    'rgb.jpg': (square('RGB', 'red', 'blue'), {'quality': 95}, 'red', 'blue'),
    'turned.jpg': (square('RGB', 'red', 'blue'), {'quality': 95, 'exif': oriented()}, 'blue', 'red'),
    'cmyk.jpg': (square('CMYK', (0, 255, 255, 0), (255, 255, 0, 0)), {'quality': 95}, 'red', 'blue'),
    'grey.png': (square('L', 51, 204), {}, '#333333', '#cccccc'),
    'grey16.png': (square('I;16', 51 * 257, 204 * 257), {}, '#333333', '#cccccc'),
    'bits.png': (square('1', 0, 1), {}, 'black', 'white'),
    'alpha.png': (square('RGBA', (255, 0, 0, 255), (0, 0, 0, 0)), {}, 'red', 'white'),
    'half.png': (square('RGBA', (255, 0, 0, 255), (0, 0, 255, 128)), {}, 'red', (127, 127, 255)),
    'grey_alpha.png': (square('LA', (51, 255), (0, 0)), {}, '#333333', 'white'),
    'palette.gif': (square('RGB', 'red', 'blue').quantize(4), {}, 'red', 'blue'),
    'palette_alpha.png': (square('RGBA', (255, 0, 0, 255), (0, 0, 0, 0)).quantize(4), {}, 'red', 'white'),
    'moving.gif': (square('RGB', 'red', 'blue'), MOVING, 'red', 'blue'),
    'tall.png': (square('RGB', 'red', 'blue', size=(24, 400)), {}, 'red', 'blue'),
    'wide.bmp': (framed(), {}, 'red', 'blue'),
    'dot.png': (square('RGB', 'red', size=(1, 1)), {}, 'red', 'red'),
}  # fmt: skip


@pytest.mark.parametrize('name', PICTURES)
def test_pictures_of_any_mode_and_size(example, tmp_path, name):
    picture, options, left, right = PICTURES[name]
    picture.save(tmp_path / name, **options)
    got = example('picture').read(tmp_path / name, 8, 12)
    assert (got.shape, got.dtype) == ((8, 12, 3), np.uint8)
    for column, color in ((1, left), (-2, right)):
        wanted = color if isinstance(color, tuple) else ImageColor.getrgb(color)
        np.testing.assert_allclose(got[:, column].astype(int), np.tile(wanted, (8, 1)), atol=6 if 'jpg' in name else 2)
    inverted = example('picture').read(tmp_path / name, 8, 12, invert=True)
    np.testing.assert_array_equal(inverted, 255 - got)


def test_a_digit_as_a_picture_is_the_digit_that_was_learned(example, tmp_path):
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    kept, _ = train_test_split(np.arange(len(y)), test_size=0.2, random_state=0, stratify=y)
    pixels = (x[kept[0]].reshape(8, 8) * (255 / 16)).round().astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'digit.png')
    got = example('picture').read(tmp_path / 'digit.png', 32, 32)
    np.testing.assert_allclose(got.astype(int), example('data').load('digits').train.x[0].astype(int), atol=1)


def test_what_can_not_be_read_is_named_and_skipped(example, run, capsys, tmp_path):
    square('RGB', 'red').save(tmp_path / 'good.PNG')
    whole = (tmp_path / 'good.PNG').read_bytes()
    (tmp_path / 'torn.png').write_bytes(whole[: len(whole) // 2])
    (tmp_path / 'empty.jpg').write_bytes(b'')
    (tmp_path / 'notes.txt').write_text('no picture, and not taken for one')
    for ending in 'pdf', 'eps', 'mpg':  # which Pillow writes, or only knows
        (tmp_path / f'other.{ending}').write_text('not taken for one either')
    (tmp_path / 'folder.png').mkdir()
    Image.new('F', (4, 4), 0.5).save(tmp_path / 'floats.tiff')
    code, lines, err = predicted(example, capsys, run, tmp_path, tmp_path / 'none.png', tmp_path / 'notes.txt')
    assert code == 1
    assert [Path(line['path']).name for line in lines] == ['good.PNG']
    assert len(err.splitlines()) == 5
    for name, word in (
        ('torn.png', ''),
        ('empty.jpg', 'cannot identify'),
        ('floats.tiff', 'floating-point'),
        ('none.png', 'No such file'),
        ('notes.txt', 'cannot identify'),
    ):
        assert any(str(tmp_path / name) in line and word in line for line in err.splitlines()), name
    code, lines, err = predicted(example, capsys, run, tmp_path / 'none.png')
    assert (code, lines, len(err.splitlines())) == (1, [], 1)


def test_a_picture_of_too_many_pixels(example, monkeypatch, tmp_path):
    square('RGB', 'red').save(tmp_path / 'large.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 300)
    with pytest.raises(Image.DecompressionBombWarning):
        example('picture').read(tmp_path / 'large.png', 8, 12)


def test_a_line_for_people(example, run, capsys, tmp_path):
    square('RGB', 'red').save(tmp_path / 'a.png')
    assert example('predict').run([str(run), str(tmp_path / 'a.png')]) == 0
    line = capsys.readouterr().out
    assert line.startswith(f'{tmp_path / "a.png"}: ')
    assert line.count('%') == 3
    assert all(name in line for name in CLASSES)


def test_nothing_to_say_is_one_sentence(example, run, capsys, tmp_path):
    square('RGB', 'red').save(tmp_path / 'a.png')
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'other' / 'checkpoints').mkdir(parents=True)
    for arguments, word in (
        ((run, tmp_path / 'empty'), 'no pictures in'),
        ((tmp_path / 'none', tmp_path / 'a.png'), 'RUN_FOLDER'),
        ((tmp_path, tmp_path / 'a.png'), 'RUN_FOLDER'),
        ((tmp_path / 'other', tmp_path / 'a.png'), 'no checkpoint'),
    ):
        with pytest.raises(example('options').Problem, match=word) as caught:
            example('predict').run([str(argument) for argument in arguments])
        assert '\n' not in str(caught.value)
    assert capsys.readouterr().out == ''


WITHOUT_JAXNORM = """
import sys
for name in 'jaxnorm', 'brainstate', 'brainunit', 'flax', 'optax', 'orbax':
    sys.modules[name] = None
sys.path.insert(0, sys.argv[1])
import exported, json, numpy as np
x = np.load(sys.argv[2])
np.savez(sys.argv[3], *[exported.logits(x[:n]) for n in (1, 5)])
print(json.dumps([exported.classes, exported.metadata]))
"""


def logits(run: Path, example, x: np.ndarray) -> np.ndarray:
    """By the model itself, batch norm and all."""
    import brainstate

    with brainstate.environ.context(fit=False):
        return np.asarray(example('trained').load(run).model(x.astype(np.float32) / 255))


@pytest.mark.slow
@pytest.mark.parametrize(
    'settings',
    [
        {},
        *(
            pytest.param(settings, marks=pytest.mark.slow)
            for settings in (
                {'ema': 0.9, 'activation': 'prelu'},
                {'norm': 'ghost', 'batch_size': 16},
                {'norm': 'batch_renorm'},
                {'norm': 'evonorm_b0', 'activation': 'identity'},
                {'norm': 'group', 'activation': 'mish'},
                {'norm': 'none', 'activation': 'hard_swish'},
            )
        ),
    ],
    ids=str,
)
def test_an_exported_model_gives_the_same_logits_without_jaxnorm(example, save, capsys, tmp_path, settings):
    run, x = save(**settings), some_images(5)
    example('export').main([str(run), str(tmp_path / 'out')])
    assert {file.name for file in (tmp_path / 'out').iterdir()} == {
        'model.stablehlo',
        'weights.safetensors',
        'exported.py',
        'picture.py',
    }
    assert 'weights.safetensors' in capsys.readouterr().out
    np.save(tmp_path / 'x.npy', x)
    code = [
        sys.executable,
        '-W',
        'error',
        '-c',
        WITHOUT_JAXNORM,
        tmp_path / 'out',
        tmp_path / 'x.npy',
        tmp_path / 'y.npz',
    ]
    result = subprocess.run(list(map(str, code)), capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    wanted = logits(run, example, x)
    assert np.abs(wanted).max() > 0.1
    with np.load(tmp_path / 'y.npz') as file:
        got = list(file.values())
    for count, y in zip((1, 5), got, strict=True):
        np.testing.assert_allclose(y, wanted[:count], rtol=1e-5, atol=1e-5)
    classes, metadata = json.loads(result.stdout)
    assert classes == CLASSES
    assert json.loads(metadata['in_size']) == list(SIZE)
    assert json.loads(metadata['settings'])['width'] == 4
    assert '255' in metadata['normalization']


@pytest.mark.slow
def test_an_exported_model_reads_pictures_as_predict_does(example, run, capsys, tmp_path, monkeypatch):
    """What is wide is cut and not pressed, and what is transparent becomes white."""
    monkeypatch.chdir(tmp_path)
    for name in 'wide.bmp', 'alpha.png', 'rgb.jpg':
        picture, options, *_ = PICTURES[name]
        picture.save(name, **options)
    paths = ['wide.bmp', 'alpha.png', 'rgb.jpg']
    example('export').main([str(run), 'out'])
    capsys.readouterr()
    _, wanted, _ = predicted(example, capsys, run, *paths)

    def exported(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, 'out/exported.py', *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    result = exported(*paths, 'none.png')
    lines = [(line['path'], *next(iter(line['classes'].items()))) for line in wanted]
    assert result.stdout.splitlines() == [f'{path}: {name} {probability:.1%}' for path, name, probability in lines]
    assert (result.returncode, result.stderr) == (
        2, "exported.py: error: can not read 'none.png': No such file or directory\n",
    )  # fmt: skip
    result = exported()
    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (2, '', 1)


def test_an_empty_folder_is_filled_and_not_replaced(example, run, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = tmp_path.stat().st_ino
    example('export').main([str(run), '.'])
    assert tmp_path.stat().st_ino == before
    names = ['exported.py', 'model.stablehlo', 'picture.py', 'weights.safetensors']
    assert sorted(file.name for file in tmp_path.iterdir()) == names


def test_a_model_that_is_not_finite_is_refused(example, save, tmp_path):
    square('RGB', 'red').save(tmp_path / 'a.png')
    run = save(wrong=np.inf)
    for command in example('predict').run, example('export').main:
        with pytest.raises(example('options').Problem, match=r'step 5 .* not finite, in model/conv2/weight'):
            command([str(run), str(tmp_path / 'a.png' if command.__name__ == 'run' else tmp_path / 'out')])
    with pytest.raises(example('options').Problem, match='makes numbers that are not finite'):
        example('predict').run([str(save(wrong=3e38)), str(tmp_path / 'a.png')])


@pytest.mark.slow
def test_averaged_weights_from_the_middle_of_an_epoch(example, save, capsys, tmp_path):
    square('RGB', 'red').save(tmp_path / 'a.png')
    for settings, said in (({'ema': 0.9}, True), ({'ema': 0.9, 'norm': 'group'}, False), ({}, False)):
        code, _, err = predicted(example, capsys, save(step=7, **settings), tmp_path / 'a.png')
        assert (code, 'step 7 is in the middle of an epoch' in err) == (0, said)


@pytest.mark.slow
def test_names_that_are_no_text(example, run, tmp_path):
    names = ['two\nlines.png', *([] if sys.platform == 'darwin' else ['no text \udcff.png'])]
    for name in names:
        square('RGB', 'red').save(tmp_path / name)
    command = [sys.executable, '-X', 'utf8', str(EXAMPLE / 'predict.py'), str(run), str(tmp_path)]
    strict = {**os.environ, 'PYTHONIOENCODING': 'utf-8:strict'}
    for options, line in (((), 'two\\nlines.png: '), (('--json',), 'two\\nlines.png"')):
        result = subprocess.run([*command, *options], capture_output=True, env=strict, timeout=120, check=False)
        assert (result.returncode, result.stderr) == (0, b'')
        assert len(result.stdout.splitlines()) == len(names)
        assert line in result.stdout.decode()


def test_batch_norms_are_gone_from_what_is_exported(example, run, tmp_path):
    from safetensors.numpy import load_file

    example('export').main([str(run), str(tmp_path / 'new' / 'out')])
    weights = load_file(tmp_path / 'new' / 'out' / 'weights.safetensors')
    assert set(weights) == {
        f'{layer}.weight.{part}'
        for layer, parts in {'conv1': 'weight bias', 'conv2': 'weight bias', 'fc1': 'weight bias', 'ln': 'scale bias',
                             'fc2': 'weight bias'}.items()
        for part in parts.split()
    }  # fmt: skip
    assert {value.dtype for value in weights.values()} == {np.dtype(np.float32)}


def test_nothing_is_exported_over_something(example, run, tmp_path):
    (tmp_path / 'file').write_text('mine')
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'file').write_text('mine')
    problem = example('options').Problem
    for output, words in (
        (tmp_path / 'full', 'OUT must be a new or empty folder'),
        (tmp_path / 'file', 'OUT must be a new or empty folder'),
        (tmp_path / 'file' / 'below', 'can not write'),
    ):
        with pytest.raises(problem, match=words):
            example('export').main([str(run), str(output)])
    with pytest.raises(problem, match='RUN_FOLDER'):
        example('export').main([str(tmp_path), str(tmp_path / 'out')])
    assert sorted(file.name for file in tmp_path.rglob('*')) == ['file', 'file', 'full']


@pytest.mark.parametrize('script', ['predict.py', 'export.py'])
def test_the_commands_say_what_is_wrong_in_a_line(script, tmp_path):
    command = [sys.executable, str(EXAMPLE / script), str(tmp_path), str(tmp_path / 'out')]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert result.stdout == ''
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert result.stderr.startswith(f'{script}: error: RUN_FOLDER must be')
    result = subprocess.run([*command[:2], '--help'], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0
    assert 'RUN_FOLDER' in result.stdout
