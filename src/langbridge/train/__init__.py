"""Training of the bridge: warm start, a thin subclass of transformers' Trainer, validation, run folder."""
