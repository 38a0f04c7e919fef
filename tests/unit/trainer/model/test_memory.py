import platform
from collections.abc import Callable

import psutil
import pytest

from spinrun_worker.trainer.model.memory import return_freed_memory, trim_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps what was freed")
@pytest.mark.parametrize("return_memory", [return_freed_memory, trim_memory])
def test_freed_memory_goes_back_to_the_kernel(return_memory: Callable[[], None]):
    process = psutil.Process()
    # What is allocated last stays, on top of the heap: below it glibc frees nothing on its own.
    blocks = [bytearray(8_000) for _ in range(20_000)]
    last = blocks.pop()
    blocks.clear()
    before = process.memory_info().rss

    return_memory()

    assert before - process.memory_info().rss > 80_000_000
    assert len(last) == 8_000
