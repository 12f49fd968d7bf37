"""Settings of the language model as a sequential recommender."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from llmd4rec.models.llm.backbone import LoRA

ItemInputs = Literal["id", "text", "id+text"]
Tuning = Literal["lora", "full", "frozen"]

PROMPT = "Given the items a user interacted with, in order, predict the item the user will interact with next."
RESPONSE = " Items:"


class LLM(BaseModel):
    """Settings of the language model as a recommender.

    >>> distillation = Distillation(model=SASRec(dim=64), llm=LLM(layers=4))
    >>> distillation.llm.item_features
    'id+text'
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field("HuggingFaceTB/SmolLM2-135M", description="Hugging Face id, folder, or .gguf file")
    layers: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        "auto", description="how many layers to keep, from the first; auto: 2 on a CPU, all on a GPU; null: all"
    )
    gguf_file: str | None = Field(None, description="name of a .gguf file inside the folder or repository")
    pretrained: bool = Field(
        True, description="false: the same network with random weights, the control for what pre-training gives"
    )
    item_features: ItemInputs = Field(
        "id+text",
        description="what an item token is made of: item embeddings of another model (id), item texts, or both",
    )
    inject: Literal["every-round", "once", "never"] = Field(
        "every-round",
        description="when the item embeddings of the model it reads become its own input embeddings",
    )
    tie_table: bool = Field(
        True, description="item tokens are also made of the model's own item table, which then learns from both ends"
    )
    prompt: str = Field(PROMPT, description="instruction before the items; may be empty")
    response: str = Field(RESPONSE, description="marker behind the instruction; may be empty")
    dim: Annotated[int, Field(ge=1)] | Literal["model"] | None = Field(
        "model",
        description="width of states and item table; model: that of the model whose item embeddings it reads; null: "
        "that of the language model",
    )
    init_table_from_model: bool | Literal["auto"] = Field(
        "auto",
        description="start the item table at that of the model whose item embeddings it reads, which needs the same "
        "width; auto: wherever that is possible",
    )
    max_length: int = Field(50, ge=1, description="the longest history read")
    dropout: float = Field(0.5, ge=0, lt=1, description="on item tokens")
    state_dropout: float = Field(0.5, ge=0, lt=1, description="on the hidden states before the item table")
    branch_dropout: Annotated[float, Field(ge=0, lt=1)] | Literal["auto"] = Field(
        "auto",
        description="on what attention and feed-forward of every layer of the language model add; auto: 0.3 in up to "
        "4 layers, and proportionally less in more of them",
    )
    tune: Tuning = Field("lora", description="what of the language model is trained")
    lora: LoRA | None = Field(LoRA(), description="the adapters: r, alpha, dropout, targets")

    def __init__(self, model: str | None = None, **values: Any) -> None:
        """Settings by name; the language model may come first without one."""
        super().__init__(**values if model is None else {"model": model, **values})

    @model_validator(mode="after")
    def _can_start_from_model(self) -> Self:
        if self.init_table_from_model is True and not self.reads_embeddings:
            raise ValueError("init_table_from_model needs item embeddings; set item_features to id or id+text")
        if self.init_table_from_model is True and self.inject == "never":
            raise ValueError("init_table_from_model needs item embeddings; set inject to once or every-round")
        return self

    @property
    def reads_embeddings(self) -> bool:
        """Whether item tokens are made of another model's item embeddings."""
        return "id" in self.item_features.split("+")

    @property
    def reads_texts(self) -> bool:
        """Whether item tokens are made of texts, which have to be encoded."""
        return "text" in self.item_features.split("+")

    def width(self, model_dim: int) -> int | None:
        """The width of states and item table, for a model of width `model_dim`; None: the language model's."""
        return model_dim if self.dim == "model" else self.dim

    def branch_rate(self, layers: int) -> float:
        """The dropout rate of each branch in a language model of so many layers."""
        # Each layer's noise is added to that of those before it: with 0.3 in each, 30 layers learned next to nothing.
        return min(0.3, 1.2 / layers) if self.branch_dropout == "auto" else self.branch_dropout

    def starts_from_model(self, model_dim: int) -> bool:
        """Whether the item table starts at that of a model of width `model_dim`."""
        if self.init_table_from_model == "auto":
            return self.inject != "never" and self.reads_embeddings and self.width(model_dim) == model_dim
        return self.init_table_from_model
