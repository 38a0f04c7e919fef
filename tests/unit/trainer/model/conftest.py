from pathlib import Path

import pytest
import torch

from support.models import tiny_llama


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama on disk, its embeddings tied."""
    return tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tiny models are faster so, and the tests do not depend on the machine's cores."""
    torch.set_num_threads(1)
