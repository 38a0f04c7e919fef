from unit.trainer.model.conftest import llama, one_thread

__all__ = ["llama", "one_thread"]
