"""``python -m versatune_ray.training`` as one of several ranks, with something wrong on rank 1
(test_training_together.py).
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from versatune_ray.errors import UserError
from versatune_ray.training import heartbeat, local, loop
from versatune_ray.training.__main__ import main
from versatune_ray.training.trainer import Trainer


def mistaken(*_: Any) -> Any:
    raise UserError("data.chat_template: /node/b/chat.jinja: no such file")


def train(what: str, *arguments: str) -> int:
    """With ``arguments``, on a rank that nothing else is run in afterwards."""
    rank, step = int(os.environ["RANK"]), Trainer.step
    heartbeat.PULSE = 0.2

    def hanging(self: Trainer, shares: Any, ahead: bool = False) -> float:
        if self.steps_done == 2 and rank == 1:
            time.sleep(60)
        if (
            self.steps_done == 2 and what == "aborted"
        ):  # as NCCL's watchdog does with those that wait
            threading.Timer(5.5, os.abort).start()
        return step(self, shares, ahead)

    if what == "mistake" and rank == 1:
        local.tokenizer_of = mistaken  # type: ignore[assignment]
    elif what == "later" and rank == 1:
        loop.load_domains = mistaken  # type: ignore[assignment]
    elif what == "blind" and rank == 1:
        before = Path.is_dir
        Path.is_dir = lambda self: "step-" not in self.name and before(self)  # type: ignore[method-assign, assignment]
    elif what in ("hangs", "aborted"):
        Trainer.step = hanging  # type: ignore[method-assign, assignment]
    sys.argv = ["versatune_ray.training", *arguments]
    return main()
