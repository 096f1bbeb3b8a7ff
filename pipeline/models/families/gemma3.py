"""Gemma 3: dense, with norms on queries and keys; from 4B up it is published as the text part of a multimodal model."""

from pipeline.models.anatomy import Family


class Gemma3(Family):
    """The language model alone."""

    model_type = "gemma3_text"
    inside = ("gemma3", "language_model.")
