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
    """Wherever it goes, the next token is that of one uncached pass. Caches of both kinds, nothing compiled."""
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
        for length in (20, 37, 37, 8):
            subject.at(tokens[:, :length])
            for step in range(WARM_STEPS + 4):
                assert subject.decode(tokens[:, length + step]).tolist() == expected(length + step + 1)
            assert subject.prefill(tokens[:, :length]).tolist() == expected(length)


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
