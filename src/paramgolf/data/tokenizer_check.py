"""A foreign SentencePiece model, checked before the library, which is native code, may use it.

The file is parsed strictly; the library, which reads a normaliser's trie without bounds, is kept in
them; and another process, with limits of memory and time, tries the model first.
"""

from __future__ import annotations

import functools
import subprocess
import sys

import numpy as np

from paramgolf.data.tokenizer_model import SentencePieceModel, parse_model
from paramgolf.errors import UserError

_SECONDS = 20
_TRIAL = """import resource,sys
for kind,limit in(resource.RLIMIT_CORE,0),(resource.RLIMIT_CPU,10),(resource.RLIMIT_AS,1<<30):
 try:resource.setrlimit(kind,(limit,limit))
 except(OSError,ValueError):pass
sys.path[:]=sys.argv[1:]
from sentencepiece import SentencePieceProcessor
try:
 model=SentencePieceProcessor(model_proto=sys.stdin.buffer.read())
 text=" \\ta  Ab\\n\\xe9e\\u0301 \\ufb01\\u4e2d\\u6587\\u2581\\U0001f600\\ue001\\0 12"*9
 model.decode(model.encode(text))
 for i in range(model.vocab_size()):model.id_to_piece(i);model.decode([i])
except(Exception,MemoryError)as error:sys.exit(str(error)or type(error).__name__)
"""


@functools.lru_cache(maxsize=4)
def check_tokenizer(model: bytes, name: str = "tokenizer") -> SentencePieceModel:
    """Parse a serialized SentencePiece model and try it in another process, once per process.

    Raises:
        UserError: naming the tokenizer `name`, if it is malformed, or the library fails, crashes,
            or takes more than 20 s or 1 GiB.
    """
    parsed = parse_model(model, name)
    for normalizer in (parsed.normalizer, parsed.denormalizer):
        if normalizer is not None and not _is_sound(normalizer.charsmap):
            raise UserError(
                f"{name} is not a SentencePiece model: its normaliser's rule is damaged"
            )
    command = [sys.executable, "-I", "-c", _TRIAL, *filter(None, sys.path)]
    try:
        trial = subprocess.run(
            command, input=model, capture_output=True, timeout=_SECONDS, check=False
        )
        reason = trial.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        if trial.returncode < 0:
            reason = f"the library crashes with it (signal {-trial.returncode})"
        failed = trial.returncode != 0
    except subprocess.TimeoutExpired:
        failed, reason = True, f"the library does not finish with it in {_SECONDS} s"
    if failed:
        raise UserError(f"{name} is not a SentencePiece model: {reason}")
    return parsed


def _is_sound(charsmap: bytes) -> bool:
    """Return whether no text makes the library read beyond the trie or the replacements.

    The charsmap is the length of a double-array trie (uint32), the trie (uint32 units), and the
    replacements, each with a zero byte at its end. From unit i, the byte b leads to the unit
    i XOR offset XOR b; a unit with bit 31 is a value, the place of a replacement.
    """
    if not charsmap:
        return True
    size = int.from_bytes(charsmap[:4], "little")
    replacements = charsmap[4 + size :]
    if size % 1024 or not 0 < size < len(charsmap) - 4 or replacements[-1:] != b"\0":
        return False
    units = np.frombuffer(charsmap, "<u4", size // 4, offset=4).astype(np.int64)
    is_value = units >> 31 == 1
    offsets = (units >> 10) << ((units & 512) >> 6)
    reached = (np.arange(len(units)) ^ offsets) | 255
    places = units[is_value] & 0x7FFFFFFF
    return bool((reached[~is_value] < len(units)).all() and (places < len(replacements)).all())
