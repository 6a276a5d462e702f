"""The decode engine; `Engine` tells the story."""

from __future__ import annotations

from .engine import PAGE_SIZE, Engine, Stream
from .request import Event, Request, Result, SamplingParams
from .text import TextPieces

__all__ = ["PAGE_SIZE", "Engine", "Event", "Request", "Result", "SamplingParams", "Stream", "TextPieces"]
