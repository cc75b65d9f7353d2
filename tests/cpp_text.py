"""The tokenizer of the C++ runtime (include/dsv2/dsv2_text.h) by ctypes, tokenizer files for it, and texts."""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import json
import random
import unicodedata
from ctypes import POINTER, byref, c_char_p, c_int32, c_int64
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from dsv2_compile.checkpoint.corpus import TEXT
from dsv2_compile.checkpoint.tokenizer import BOS, EOS
from dsv2_compile.engine.manifest import FileEntry
from tests import cpp_build, toy_engine
from tests.cpp_abi import Library
from tests.cpp_structs import INTS, CError, Handle

VOCAB, BOS_ID = 8192, 5000

# The letters of the published DeepSeek-V2 tokenizer: those of alphabets with upper and lower case.
LETTERS = """
41-5a 61-7a b5 c0-d6 d8-f6 f8-1ba 1bc-1bf 1c4-293 295-2af 370-373 376 377 37b-37d 37f 386 388-38a 38c 38e-3a1 3a3-3f5
3f7-481 48a-52f 531-556 10a0-10c5 13a0-13f5 13f8-13fd 1c90-1cba 1cbd-1cbf 1d00-1d2b 1d6b-1d77 1d79-1d9a 1e00-1f15
1f18-1f1d 1f20-1f45 1f48-1f4d 1f50-1f57 1f59 1f5b 1f5d 1f5f-1f7d 1f80-1fb4 1fb6-1fbc 1fbe 1fc2-1fc4 1fc6-1fcc 1fd0-1fd3
1fd6-1fdb 1fe0-1fec 1ff2-1ff4 1ff6-1ffc 2102 2107 210a-2113 2115 2119-211d 2124 2126 2128 212a-212d 212f-2134 2139
213c-213f 2145-2149 214e 2183 2184 2c00-2c7b 2c7e-2ce4 2ceb-2cee 2cf2 2cf3 a640-a66d a680-a69b a722-a76f a771-a787
a78b-a78e ab70-abbf fb00-fb06 fb13-fb17 ff21-ff3a ff41-ff5a 10400-1044f 104b0-104d3 104d8-104fb 10c80-10cb2 10cc0-10cf2
118a0-118df 1e900-1e943
"""
LETTER_SET = "".join("-".join(chr(int(end, 16)) for end in r.split("-")) for r in LETTERS.split())
CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"


def split(pattern: str, behavior: str = "Isolated", invert: bool = False, kind: str = "Regex") -> dict[str, Any]:
    return {"type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert}


def digits(individual: bool) -> dict[str, Any]:
    return {"type": "Digits", "individual_digits": individual}


def byte_level(prefix: bool = False, regex: bool = False) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": regex}


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


PUNCTUATION = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"
PRE_TOKENIZERS = {
    "published": sequence(
        *map(split, ("[\r\n]", f"\\s?[{LETTER_SET}]+", PUNCTUATION, "\\s+$", CJK)), digits(True), byte_level()
    ),
    "classes": sequence(*map(split, ("[\r\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", CJK)), digits(False), byte_level()),
    "lookahead": sequence(
        split("\\p{N}{1,3}"),
        split("[^\r\n\\p{L}\\p{P}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"),
        byte_level(),
    ),
    "behaviors": sequence(
        split("\\s", "MergedWithNext"),
        split(".", "MergedWithPrevious", kind="String"),
        split("[aeiou]", "Contiguous"),
        split("\\p{Lu}", "Removed"),
        split("[^-q]+", "Removed", invert=True),
        byte_level(prefix=True, regex=True),
    ),
}

NASTY = (
    *("", " ", "  ", "\n", "\r\n", "\r", "\n\n\n", "a \nb", "a  \n", " \t \r\n \n", " " * 300, " " * 80 + "7", "\t\tx"),
    *("\x00", "\x1f\x7f", "\ufeffa", "\u200b", "\u200d", "\xa0 \xa0", "\u3000。", "\x85\u2028\u2029", "\ufffd\ufffd"),
    *("0123456789", "3.14e-10", "٣٤٥", "Ⅷ½²", "1a2b3c", "x²", "١٢ 中文 34", "007", "1,000,000"),
    *("🙂", "👩‍👩‍👧‍👦🏽", "🇩🇪🇫🇷", "e\u0301\u0302\u0303", "\u0301", "ñ n\u0303", "ﬁ ﬀ", "ſK\u212a", "\U0010ffff\ue000"),
    *(
        "中文字符测试。你好！",
        "日本語テスト、カタカナ",
        "한국어 시험",
        "שלום עולם",
        "مرحبا بالعالم\u202e\u202c",
        "ไทย",
        "हिन्दी",
    ),
    *(
        "I'll don't we've 'S 's",
        "a'b''c",
        "C++ == <= -> $x ^ `y` |z|",
        "!!!...???",
        "—–‘’“”",
        "def f(x):\n    return x\n",
    ),
    *(
        BOS,
        EOS,
        f"a{BOS}b",
        f" {EOS} {EOS}",
        f"{BOS}{BOS}",
        BOS[:-1],
        "<｜User｜>»<｜User",
        "»<｜User｜>»<｜User.",
        "<｜User｜><｜User｜",
        "<｜User｜>!<｜User｜!",
        "<eos><bos",
    ),
    *("a" * 3000, "ab" * 700, "é" * 500, "中" * 600, "<" * 100, "AaBb.Cc..d. e", "qQ-q"),
)

CHARACTERS: dict[str, list[str]] = {}
"""All that Python's Unicode knows, by category: later ones know more, and cut those otherwise."""
for c in map(chr, range(0x110000)):
    if (category := unicodedata.category(c)) not in ("Cn", "Cs"):
        CHARACTERS.setdefault(category, []).append(c)


def random_text(rng: random.Random) -> str:
    """Runs of one category, spaces, and parts of the nasty ones."""
    parts = []
    for _ in range(rng.randint(1, 12)):
        pool = rng.choice((CHARACTERS[rng.choice(list(CHARACTERS))], "abcdefgh", "etaoin ", " \t\r\n", "09 .,"))
        parts.append("".join(rng.choice(pool) for _ in range(rng.randint(1, 9))))
        if rng.random() < 0.4:
            parts.append(rng.choice(NASTY)[:40])
    return "".join(parts)


def trained() -> dict[str, Any]:
    """A tokenizer.json of some thousand merges, over several scripts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    rng = random.Random(0)
    letters = "абвгдежзиклмнопрст中文字符测试你好。日本語テ한국어שלוםمرحبا🙂🇩🇪éñ\u0301１２"
    words = " ".join("".join(rng.choices(letters, k=rng.randint(1, 6))) for _ in range(3000))
    text = [TEXT, words, "\n".join(NASTY)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=BOS_ID, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(text, trainer)
    tokenizer.add_special_tokens([AddedToken(BOS, normalized=True), AddedToken(EOS, normalized=True)])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in ("<｜User｜>", "<｜User｜>!")])
    tokenizer.add_tokens([AddedToken("»<｜User", normalized=True)])
    made: dict[str, Any] = json.loads(tokenizer.to_str())
    assert tokenizer.token_to_id(BOS) == BOS_ID and len(made["model"]["merges"]) > 4000
    return made


def engine(root: Path, tokenizer: Any, options: Any = None, vocab_size: int = VOCAB, bos: int | None = BOS_ID) -> Path:
    """As much of an engine as text needs: a manifest and the tokenizer files; values are bytes, or written as JSON."""
    root.mkdir()
    files = {p.file: FileEntry("0" * 64, 0) for p in toy_engine.manifest().programs.values()}
    for name, value in (("tokenizer.json", tokenizer), ("tokenizer_config.json", options)):
        if value is not None:
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            (root / name).write_bytes(data)
            files[name] = FileEntry(hashlib.sha256(data).hexdigest(), len(data))
    model = dataclasses.replace(toy_engine.CONFIG, vocab_size=vocab_size, bos_token_id=bos)
    (root / "manifest.json").write_bytes(toy_engine.manifest(files=files, model=model).to_bytes())
    return root


class CppText:
    """dsv2_text, as `dsv2_compile.runtime.text.Text`."""

    def __init__(self, library: Library, root: Path) -> None:
        self.library, self.handle = library, Handle()
        library.call("text_open", str(root).encode(), byref(self.handle))

    def encode(self, text: str | bytes) -> list[int]:
        data = text.encode() if isinstance(text, str) else text
        ids, count = (c_int32 * (2 * len(data) + 8))(), c_int64()
        self.library.call("text_encode", self.handle, data, len(data), ids, len(ids), byref(count))
        return ids[: count.value]

    def decode(self, ids: list[int]) -> str:
        given, nbytes = (self.handle, (c_int32 * len(ids))(*ids), len(ids)), c_int64()
        self.library.call("text_decode", *given, None, 0, byref(nbytes))
        out = ctypes.create_string_buffer(nbytes.value)
        self.library.call("text_decode", *given, out, nbytes.value, byref(nbytes))
        return out.raw.decode()

    def stream(self) -> CppStream:
        handle = Handle()
        self.library.call("text_stream_open", self.handle, byref(handle))
        return CppStream(self.library, handle)


class CppStream:
    def __init__(self, library: Library, handle: Handle) -> None:
        self.library, self.handle = library, handle

    def push(self, token: int) -> str:
        return self._given("text_stream_push", token)

    def end(self) -> str:
        return self._given("text_stream_end")

    def _given(self, name: str, *arguments: int) -> str:
        text, nbytes = c_char_p(), c_int64()
        self.library.call(name, self.handle, *arguments, byref(text), byref(nbytes))
        return ctypes.string_at(text, nbytes.value).decode()


def library() -> Library:
    """libdsv2 with the functions of dsv2_text.h."""
    loaded = Library(cpp_build.library())
    texts, size = POINTER(c_char_p), POINTER(c_int64)
    for name, arguments in {
        "open": (c_char_p, POINTER(Handle)),
        "encode": (Handle, c_char_p, c_int64, INTS, c_int64, size),
        "decode": (Handle, INTS, c_int64, c_char_p, c_int64, size),
        "close": (Handle,),
        "stream_open": (Handle, POINTER(Handle)),
        "stream_push": (Handle, c_int32, texts, size),
        "stream_end": (Handle, texts, size),
        "stream_close": (Handle,),
    }.items():
        function = getattr(loaded.lib, f"dsv2_text_{name}")
        function.argtypes, function.restype = (*arguments, POINTER(CError)), c_int32
    return loaded
