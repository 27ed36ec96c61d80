"""What runs the frozen LM: one protocol; the reference engine on transformers."""

from langbridge.engine.protocol import Engine, Load, Part, Piece, Request, Scoring, Token

__all__ = ["Engine", "Load", "Part", "Piece", "Request", "Scoring", "Token"]
