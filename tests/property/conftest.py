"""Shared by the property tests: a small tokenizer, English text, and Hypothesis settings."""

from __future__ import annotations

from pathlib import Path
from pydoc_data.topics import topics

import pytest
from hypothesis import settings

from paramgolf.data.tokenizer import Tokenizer
from paramgolf.data.tokenizer_training import train_tokenizer

settings.register_profile("paramgolf", deadline=None, derandomize=True, database=None)
settings.load_profile("paramgolf")

VOCAB_SIZE = 450


@pytest.fixture(scope="session")
def english() -> list[str]:
    """A few hundred kilobytes of English: the help topics of Python."""
    return [text.strip() + "\n" for _, text in sorted(topics.items())][:40]


@pytest.fixture(scope="session")
def tokenizer_model(english: list[str]) -> bytes:
    return train_tokenizer(english, VOCAB_SIZE)


@pytest.fixture(scope="session")
def tokenizer(tokenizer_model: bytes) -> Tokenizer:
    return Tokenizer(tokenizer_model)


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for examples of Hypothesis, each of which overwrites the last."""
    return tmp_path_factory.mktemp("scratch")
