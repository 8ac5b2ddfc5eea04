"""Numbers that tasks of the paper share, and those of a trial."""

from __future__ import annotations

from typing import Any

FINE_TUNING: dict[str, Any] = {
    "max_length": 4096, "attention_window": 512, "long": "cut", "learning_rate": 3e-5, "batch": 32,
    "schedule": "linear", "power": 1.0, "weight_decay": 0.01, "adam_beta2": 0.98, "adam_epsilon": 1e-8,
    "max_grad_norm": 1.0, "device_batch": 1,
}  # fmt: skip
TRIAL: dict[str, Any] = {
    "max_length": 256, "attention_window": 32, "learning_rate": 2e-3, "epochs": 2.0, "batch": 8, "warmup": 2,
    "device_batch": 4,
}  # fmt: skip
