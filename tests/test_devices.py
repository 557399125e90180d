"""A batch over eight devices and over two processes gives what one device gives; each run is bounded in time."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name('on_devices.py')
SECONDS = 150


def start(*arguments, devices):
    flags = f'--xla_force_host_platform_device_count={devices}'
    environment = os.environ | {'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'}
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *arguments],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(*processes):
    """What each printed; all are ended if one takes too long."""
    try:
        found = [process.communicate(timeout=SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (out, err) in zip(processes, found, strict=True):
        assert process.returncode == 0, out + err
    return [out for out, _ in found]


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


@pytest.mark.slow
def test_eight_devices():
    (out,) = finish(start('eight', devices=8))
    assert out.count(': right') == 24, out
    assert 'an unknown name: refused' in out


def test_two_processes():
    address = f'127.0.0.1:{free_port()}'
    for out in finish(*(start('pair', address, str(index), devices=1) for index in range(2))):
        assert out.count(': right') == 4, out
