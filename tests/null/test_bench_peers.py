"""The peers of a benchmark, and processes measured from outside."""

from __future__ import annotations

import sys
import time

import numpy as np
import pytest
import torch

from dsv2_compile.bench import peers
from dsv2_compile.bench.measure import WARM_STEPS, Workload
from dsv2_compile.bench.peers import TransformersSubject
from dsv2_compile.bench.process import run
from dsv2_compile.checkpoint.synth import SynthRequest, synth


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from transformers import DeepseekV2ForCausalLM

    path = tmp_path_factory.mktemp("peer") / "m"
    synth(SynthRequest(path, "tiny", {"layers": 2}, "float32"))
    return DeepseekV2ForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


@pytest.mark.parametrize("mode", peers.MODES)
def test_subject_follows_the_whole_sequence(model, mode, monkeypatch):
    """After a prompt the next tokens are those of one uncached pass. Caches of both kinds, nothing compiled."""
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda f, **options: compiled.append(options) or f)
    monkeypatch.setattr(peers, "CHUNK", 16)
    work = Workload((8,), (40,), batch=2, decode_steps=4)
    tokens = np.random.default_rng(0).integers(0, 2048, (2, 60))
    subject = TransformersSubject(model, mode, work)
    assert compiled == ([{"dynamic": False}] if mode == "compile" else [])

    def expected(length):
        return model(torch.from_numpy(tokens[:, :length]), use_cache=False).logits[:, -1].argmax(-1).tolist()

    with torch.inference_mode():
        for length in (20, 37, 8):
            assert subject.prefill(tokens[:, :length]).tolist() == expected(length)
            for step in range(WARM_STEPS + 4):
                assert subject.decode(tokens[:, length + step]).tolist() == expected(length + step + 1)


@pytest.mark.parametrize("mode", peers.MODES)
def test_subject_is_where_it_says(model, mode, monkeypatch):
    """The steps work over all the positions asked for: another number in the first of them changes the logits."""
    monkeypatch.setattr(torch, "compile", lambda f, **options: f)
    numbers, seen = peers.filling, []
    for first in (0.5, 9.0):

        def filling(shape, first=first):
            return np.concatenate((np.full_like(numbers(shape)[:, :, :1], first), numbers(shape)[:, :, 1:]), 2)

        monkeypatch.setattr(peers, "filling", filling)
        subject = TransformersSubject(model, mode, Workload((8,), (40,), batch=2, decode_steps=4))
        with torch.inference_mode():
            subject.at(40)
            assert [int(subject._cache.get_seq_length(i)) for i in range(2)] == [40, 40]
            at = torch.full((2, 1), 40)
            seen.append(model(torch.full((2, 1), 7), cache=subject._cache, position_ids=at).logits)
        assert int(subject._cache.get_seq_length(0)) == 41
    assert not torch.equal(*seen)


def python(code: str, **options):
    return run([sys.executable, "-c", code], **options)


def test_process_is_given_its_input_and_heard():
    done = python("import sys; print(sys.stdin.read()[::-1]); print('oh', file=sys.stderr); sys.exit(3)", stdin="abc")
    assert (done.stdout, done.stderr, done.status, done.timed_out) == ("cba\n", "oh\n", 3, False)
    assert 0 < done.seconds < 30


def test_process_memory_private_and_mapped(tmp_path):
    """200 MB of its own, then 200 MB of a mapped file."""
    own = python("import time; b = bytearray(200_000_000); b[::4096] = b'1' * len(b[::4096]); time.sleep(0.3)")
    assert own.peak_private_bytes > 200e6 and own.peak_rss_bytes > 200e6
    (tmp_path / "f").write_bytes(bytes(200_000_000))
    mapped = python(
        "import mmap, sys, time; f = open(sys.stdin.read(), 'rb')\n"
        "m = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)\n"
        "s = sum(m[i] for i in range(0, len(m), 4096)); time.sleep(0.3)",
        stdin=str(tmp_path / "f"),
    )
    assert mapped.peak_private_bytes < 100e6 and mapped.peak_rss_bytes > 200e6


def test_process_and_its_children_end_at_the_timeout(tmp_path):
    code = (
        "import subprocess, sys, time\n"
        "child = 'import time, sys; time.sleep(2); open(sys.argv[1], \"w\")'\n"
        "subprocess.Popen([sys.executable, '-c', child, sys.stdin.read()])\n"
        "print('started', flush=True); time.sleep(60)"
    )
    done = python(code, stdin=str(tmp_path / "alive"), timeout=1.0)
    assert done.timed_out and done.status == -9 and done.stdout == "started\n" and done.seconds < 10
    time.sleep(2.0)
    assert not (tmp_path / "alive").exists()
