"""Settings of item texts: what they are made of, and what turns them into vectors."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class TextSettings(BaseModel):
    """How item texts become vectors, which all models of a run share."""

    model_config = ConfigDict(extra="forbid")

    encoder: str = Field(
        "sentence-transformers/all-MiniLM-L6-v2",
        description='what turns item texts into vectors: a sentence encoder, or "llm" for the language model itself',
    )
    fields: list[str] | None = Field(
        None,
        description="columns of the catalogue that texts are made of; null: those of the data set. The features words "
        "and attributes are made of all its columns: keep out of it what no model may see",
    )
