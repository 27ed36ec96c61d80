"""The errors a user can meet; every message says what was found, what was wanted and what to do.

LangBridgeError
├── ConfigError       a recipe or an option makes no sense
├── PretrainedError   a pretrained model cannot be found, downloaded, verified or used
├── CheckpointError   a run folder is incomplete, foreign or does not fit its models
├── DataError         a data file is missing, malformed or empty
├── TrainingError     a run was ended from outside, or its processes do not fit together
├── PromptError       a prompt or template cannot be given to the model
├── SandboxError      generated code may not, or cannot, be run here
└── EngineError       what runs the LM is closed or broke down
"""


class LangBridgeError(Exception):
    """Base of all errors that a user can cause and cure."""


class ConfigError(LangBridgeError):
    """A recipe or an option makes no sense."""


class PretrainedError(LangBridgeError):
    """A pretrained model cannot be found, downloaded, verified or used."""


class CheckpointError(LangBridgeError):
    """A run folder is incomplete, foreign or does not fit its models."""


class DataError(LangBridgeError):
    """A data file is missing, malformed or empty."""


class TrainingError(LangBridgeError):
    """A run was ended from outside, or its processes do not fit together."""


class PromptError(LangBridgeError):
    """A prompt or template cannot be given to the model."""


class SandboxError(LangBridgeError):
    """Generated code may not, or cannot, be run here."""


class EngineError(LangBridgeError):
    """What runs the LM is closed or broke down."""
