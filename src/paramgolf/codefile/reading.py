"""Reads the configuration in a `train_gpt.py` without running it."""

from __future__ import annotations

import ast
import bz2
import json
import re
from pathlib import Path
from typing import Any

from paramgolf.errors import UserError
from paramgolf.runtime.files import read_file

_CONTENT = re.compile(rb"bz2\.decompress\('''(.*?)'''\.encode", re.DOTALL)
_MAX_BYTES = 1 << 26


def configuration_in(path: Path) -> dict[str, Any]:
    """Return the configuration of the run that a code file repeats, as JSON values.

    Raises:
        UserError: if the file cannot be read, or is not what `build` writes.
    """
    found = _CONTENT.search(read_file(path, max_bytes=_MAX_BYTES))
    if found is None:
        raise UserError(f"{path} is no code file of paramgolf")
    try:
        packed = ast.literal_eval(f"'''{found[1].decode('latin-1')}'''").encode("latin-1")
        content = bz2.BZ2Decompressor().decompress(packed, _MAX_BYTES)
        values = json.loads(content.partition(b"\0")[0])
    except (ValueError, SyntaxError, OSError, TypeError, RecursionError, MemoryError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} contains no configuration")
    return values
