"""CLIP models: one to train for open_clip, one by x-clip's keywords, and adapters to open_clip and OpenAI's."""

from __future__ import annotations

from .trainable import ClipBatch, ClipConfig, LoadedClip, TrainableClip, load_open_clip, save_open_clip

__all__ = ["ClipBatch", "ClipConfig", "LoadedClip", "TrainableClip", "load_open_clip", "save_open_clip"]
