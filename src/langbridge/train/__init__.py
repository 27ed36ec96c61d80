"""Training of the bridge: warm start, a thin subclass of transformers' Trainer, validation, run folder."""

from langbridge.train.run import train

__all__ = ["train"]
