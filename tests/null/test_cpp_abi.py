"""The C ABI on an engine of files: what it refuses, what it gives beside Python, and that nothing stays behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from dsv2_compile import __version__
from dsv2_compile.errors import Dsv2Error
from dsv2_compile.runtime import Draw, Sampling
from dsv2_compile.runtime import Engine as PythonEngine
from tests import cpp_build, toy_engine
from tests.cpp_abi import INCOMPATIBLE, INTEGRITY, NUMERIC, RESOURCE, USAGE, AbiError, Engine, Library, Session, Token
from tests.toy_engine import EOS, LAYERS, MAX_BATCH, MAX_SEQ, NAN, VOCAB, WIDTH

(WHEEL,) = Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*")
GREEDY = Draw(Sampling(), 0.0)
PROMPTS = [[5, 6, 7, 8], [200], [1, 2, 3], [9] * 40, [7, 7], [30, 20, 10], [4], [6, 5]]


@pytest.fixture(scope="module")
def library() -> Library:
    return Library(cpp_build.library())


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("toy") / "engine"
    toy_engine.build(path)
    return path


@pytest.fixture(scope="module")
def engine(library: Library, path: Path) -> Iterator[Engine]:
    with library.load(path, threads=1, onnxruntime=str(WHEEL)) as engine:
        yield engine


@pytest.fixture(scope="module")
def python(path: Path) -> Iterator[PythonEngine]:
    with PythonEngine.load(path, threads=1) as engine:
        yield engine


def test_version_and_info(library: Library, engine: Engine) -> None:
    info = engine.info
    assert library.version == __version__
    assert (info.vocab_size, info.layers, info.cache_dim) == (VOCAB, LAYERS, WIDTH)
    assert (info.max_batch_size, info.max_seq_len, info.page_count) == (MAX_BATCH, MAX_SEQ, 0)
    assert (info.eos_tokens[: info.eos_count], info.bos_token) == ([EOS], toy_engine.CONFIG.bos_token_id)
    assert (info.backend, info.target, info.verified) == (b"onnxruntime", b"cpu", 1)


def test_an_unverified_engine_is_loaded_and_says_so(library: Library, tmp_path: Path) -> None:
    toy_engine.build(tmp_path / "e", status="unverified")
    with library.load(tmp_path / "e", onnxruntime=str(WHEEL)) as engine:
        assert not engine.info.verified


def test_random_numbers_are_those_of_numpy(library: Library) -> None:
    rng = np.random.default_rng(0)
    edges = [0, 1, 2**32 - 1, 2**32, 2**32 + 1, 2**63, 2**64 - 1]
    for seed in edges + rng.integers(0, 2**64, 60, np.uint64).tolist():
        for stream in (0, 1, 2**32, 2**64 - 1, int(rng.integers(0, 2**40))):
            expected = Sampling(seed=seed).stream(stream).random(5)
            assert library.uniforms(seed, stream, 5).tobytes() == expected.tobytes(), (seed, stream)


@pytest.mark.parametrize(
    "sampling",
    [Sampling(), Sampling(0.7, seed=2**40), Sampling(5.0, 20), Sampling(2.0, 0, 0.8, 7), Sampling(9, 50, 0.5)],
)
def test_generation_gives_the_tokens_of_python(engine: Engine, python: PythonEngine, sampling: Sampling) -> None:
    """More prompts than slots, some of which end by themselves."""
    expected = [list(c.tokens) for c in python.generate(PROMPTS, 30, sampling).completions()]
    assert engine.generate(PROMPTS, 30, sampling) == expected


def test_a_scheduler_gives_the_tokens_of_python(engine: Engine, python: PythonEngine) -> None:
    sampling = Sampling(3.0, 30, 0.9, 5)
    options = {"max_batch": 3, "max_tokens": 60, "chunk_tokens": 8}
    with python.scheduler(**options) as scheduler:
        requests = [scheduler.submit(p, 30, sampling, stop_tokens=[17], stream=i) for i, p in enumerate(PROMPTS)]
        expected = [list(r.result().tokens) for r in requests]
    made: dict[int, list[int]] = {}
    with engine.scheduler(**options) as scheduler:
        for i, prompt in enumerate(PROMPTS):
            scheduler.submit(prompt, 30, sampling, [17], i, lambda t: made.setdefault(t[0], []).append(t[1]))
        scheduler.drain()
        stats = scheduler.stats
    assert [made[i] for i in range(len(PROMPTS))] == expected
    assert (stats.finished, stats.live, stats.waiting) == (len(PROMPTS), 0, 0)
    assert (stats.prompt_tokens, stats.new_tokens) == (sum(map(len, PROMPTS)), sum(map(len, expected)))


REFUSED = {
    "a token that is too high": lambda s: s.prefill([[VOCAB]], [1]),
    "a token below zero": lambda s: s.decode([-1]),
    "an empty prompt": lambda s: s.prefill([[1]], [0]),
    "no prompt": lambda s: s.prefill(np.zeros((0, 1), int), []),
    "more than the session holds": lambda s: s.extend([[1] * 9], [9]),
    "a length beyond its columns": lambda s: s.prefill([[1]], [2]),
    "a batch that is too large": lambda s: s.prefill([[1]] * 3, [1] * 3),
    "a slot outside": lambda s: s.prefill([[1]], [1], [2]),
    "a slot given twice": lambda s: s.decode([1, 1], [0, 0]),
    "a slot without a sequence": lambda s: s.decode([1], [1]),
    "the end of what has not begun": lambda s: s.free([1]),
    "the end twice": lambda s: (s.free([0]), s.free([0])),
    "a number that is no uniform one": lambda s: s.step([1], [Draw(Sampling(), 1.5)]),
    "cache rows that are not finite": lambda s: s.restore(np.full((LAYERS, 1, 2, WIDTH), np.nan), [2]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_session_refuses(engine: Engine, python: PythonEngine, name: str) -> None:
    """As Python does, in its words."""
    with engine.session(2, 10) as session, python.session(2, 10) as other:
        for s in (session, other):
            s.prefill([[1, 2]], [2])
        with pytest.raises(AbiError) as e:
            REFUSED[name](session)
        assert e.value.code == USAGE
        with pytest.raises(Dsv2Error) as expected:
            REFUSED[name](other)
        assert (e.value.cause, e.value.remedy) == (expected.value.cause, expected.value.remedy)
        if name != "the end twice":
            assert session.decode([5], [0]).tobytes() == other.decode([5], [0]).tobytes()


def test_what_is_refused_before_there_is_a_session(library: Library, engine: Engine, path: Path) -> None:
    def code(call: str, *arguments: object, **options: object) -> int:
        with pytest.raises(AbiError) as e:
            getattr(engine if hasattr(engine, call) else library, call)(*arguments, **options)
        return e.value.code

    assert code("session", MAX_BATCH + 1) == USAGE
    assert code("session", 1, MAX_SEQ + 1) == USAGE
    assert code("scheduler", max_waiting=-1) == USAGE
    assert code("generate", [], 1) == USAGE
    assert code("generate", [[1], []], 1) == USAGE
    assert code("generate", [[1], [VOCAB]], 1) == USAGE
    assert code("generate", [[1] * (MAX_SEQ + 1)], 1) == USAGE
    assert code("generate", [[1]], 0) == USAGE
    assert code("load", path / "nowhere") == USAGE
    assert code("load", path, threads=-1) == USAGE
    assert code("load", path, cache_tokens=-1) == USAGE
    assert code("load", path, cache_tokens=64, onnxruntime=str(WHEEL)) == USAGE
    assert code("load", path, onnxruntime="/nowhere/libonnxruntime.so") == INCOMPATIBLE


def test_a_damaged_engine(library: Library, tmp_path: Path) -> None:
    toy_engine.build(tmp_path / "e")
    for name in ("decode.onnx", "config.json"):
        file = tmp_path / "e" / name
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(AbiError) as e:
        library.load(tmp_path / "e", onnxruntime=str(WHEEL))
    assert e.value.code == INTEGRITY
    assert all(name in str(e.value) for name in ("decode.onnx", "config.json"))


def test_one_bad_sequence_harms_no_other(engine: Engine, python: PythonEngine) -> None:
    tokens: dict[int, list[Token]] = {}
    with engine.scheduler(max_batch=4) as scheduler:
        for prompt in ([1, 2], [3, NAN], [4], [9, 8, 7]):
            scheduler.submit(prompt, 6, on_token=lambda t: tokens.setdefault(t[0], []).append(t))
        scheduler.drain()
        stats = scheduler.stats
    assert tokens[1] == [(1, -1, "failed", NUMERIC)]
    assert (stats.failed, stats.finished) == (1, 3)
    alone = python.generate([[1, 2], [4], [9, 8, 7]], 6).completions()
    assert [[t[1] for t in tokens[i]] for i in (0, 2, 3)] == [list(c.tokens) for c in alone]
    with pytest.raises(AbiError, match="NaN or infinity") as e:
        engine.generate([[1, 2], [3, NAN]], 6)
    assert e.value.code == NUMERIC


def test_cancelling(engine: Engine) -> None:
    """From a callback, from another thread, and by the end of the scheduler; a full queue refuses."""
    ends: dict[int, str | None] = {}
    begun = threading.Event()

    def seen(token: Token) -> None:
        begun.set()
        ends[token[0]] = token[2]

    assert [len(m) for m in engine.generate([[1], [2]], 50, on_token=lambda t: t[0] == 0)] == [1, 50]
    with engine.scheduler(max_batch=1, max_waiting=1) as scheduler:
        scheduler.submit([1], 2000, on_token=seen)
        begun.wait(20)
        scheduler.submit([2], 5, on_token=seen)
        with pytest.raises(AbiError) as e:
            scheduler.submit([3], 5, on_token=seen)
        assert e.value.code == RESOURCE
        scheduler.cancel(0)
        scheduler.cancel(99)
        scheduler.drain()
        assert ends == {0: "cancelled", 1: "length"}
        scheduler.submit([1], 2000, on_token=seen)
    assert ends[2] == "cancelled"


def test_closed_handles(library: Library, path: Path) -> None:
    engine = library.load(path, threads=1, onnxruntime=str(WHEEL))
    again = library.load(path, threads=1, onnxruntime=str(WHEEL))
    session, scheduler = engine.session(), engine.scheduler()
    closed = engine.session()
    closed.close()
    _closed(closed)
    engine.close()
    for owner in (engine, session, scheduler, closed):
        _closed(owner)
    with pytest.raises(AbiError):
        engine.generate([[1]], 1)
    with again, again.session() as other:  # what is loaded twice is closed once
        assert np.isfinite(other.prefill([[1]], [1])).all()


def _closed(owner: Engine | Session) -> None:
    with pytest.raises(AbiError, match="There is no open") as e:
        owner.close()
    assert e.value.code == USAGE


def test_calls_of_many_threads(engine: Engine) -> None:
    """Each thread has its slot of one session; their rows are those of a sequence alone."""
    with engine.session(1, 64) as alone:
        expected = [alone.prefill([[i + 20, 5]], [2]) for i in range(4)]
    wrong: list[int] = []

    def work(slot: int) -> None:
        for _ in range(25):
            logits = session.prefill([[slot + 20, 5]], [2], [slot])
            if logits.tobytes() != expected[slot].tobytes() or session.length(slot) != 2:
                wrong.append(slot)

    with engine.session(4, 64) as session:
        threads = [threading.Thread(target=work, args=(slot,)) for slot in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    assert not wrong


def test_nothing_stays_behind(library: Library, engine: Engine, path: Path) -> None:
    """Resident memory does not grow over 10,000 sessions, nor over many schedulers and engines."""

    def sessions() -> None:
        with engine.session(2, 512) as session:
            session.prefill([[1] * 64] * 2, [64, 64])
            with pytest.raises(AbiError):
                session.decode([VOCAB])

    def schedulers() -> None:
        with engine.scheduler(max_batch=2) as scheduler:
            for _ in range(4):
                scheduler.submit([1, 2], 3)

    def engines() -> None:
        with library.load(path, threads=1, onnxruntime=str(WHEEL)) as other:
            other.session().prefill([[1]], [1])  # closed with its engine

    for body, count in ((sessions, 10_000), (schedulers, 1000), (engines, 80)):
        for _ in range(count // 4):
            body()
        before = _resident()
        for _ in range(count):
            body()
        assert _resident() - before < 1 << 20, body.__name__


def _resident() -> int:
    """Bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
