"""Settings of the language model as a sequential recommender."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from llmd4rec.models.llm.backbone import LoRA

ItemInputs = Literal["id", "text", "id+text"]
Tuning = Literal["lora", "full", "frozen"]

PROMPT = "Given the items a user interacted with, in order, predict the item the user will interact with next."
RESPONSE = " Items:"


class LLM(BaseModel):
    """Settings of the language model as a recommender."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field("HuggingFaceTB/SmolLM2-135M", description="Hugging Face id, folder, or .gguf file")
    layers: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        "auto", description="how many layers to keep, from the first; auto: 2 on a CPU, all on a GPU; null: all"
    )
    gguf_file: str | None = Field(None, description="name of a .gguf file inside the folder or repository")
    pretrained: bool = Field(
        True, description="false: the same network with random weights, the control for what pre-training gives"
    )
    item_features: ItemInputs = Field("id+text", description="what an item token is made of")
    encoder: str = Field(
        "sentence-transformers/all-MiniLM-L6-v2",
        description='what turns item texts into vectors: a sentence encoder, or "llm" for the language model itself',
    )
    text_fields: list[str] | None = Field(
        None,
        description="columns of the catalogue that texts are made of; null: those of the data set. Words and "
        "attributes of the CRM's table come from all its columns: keep out of it what no model may see",
    )
    tie_table: bool = Field(
        True, description="item tokens are also made of the model's own item table, which then learns from both ends"
    )
    prompt: str = Field(PROMPT, description="instruction before the items; may be empty")
    response: str = Field(RESPONSE, description="marker behind the instruction; may be empty")
    dim: Annotated[int, Field(ge=1)] | Literal["crm"] | None = Field(
        "crm", description="width of states and item table; crm: that of the CRM whose items it reads; null: its own"
    )
    init_table_from_model: bool | Literal["auto"] = Field(
        "auto", description="start the item table at the CRM's (needs its width); auto: wherever that is possible"
    )
    max_length: int = Field(50, ge=1, description="the longest history read")
    dropout: float = Field(0.5, ge=0, lt=1, description="on item tokens")
    state_dropout: float = Field(0.5, ge=0, lt=1, description="on the hidden states that the item table is met with")
    branch_dropout: Annotated[float, Field(ge=0, lt=1)] | Literal["auto"] = Field(
        "auto",
        description="on what attention and feed-forward of every layer of the language model add; auto: 0.3 in up to "
        "4 layers, and in more of them so much less that it comes to the same in all",
    )
    tune: Tuning = Field("lora", description="what of the language model is trained")
    lora: LoRA | None = Field(LoRA(), description="the adapters: r, alpha, dropout, targets")

    def __init__(self, model: str | None = None, **values: Any) -> None:
        """Settings by name; the language model may come first without one."""
        super().__init__(**values if model is None else {"model": model, **values})

    def width(self, crm_dim: int) -> int | None:
        """The width of states and item table beside a CRM of width `crm_dim`; None: that of the language model."""
        return crm_dim if self.dim == "crm" else self.dim

    def branch_rate(self, layers: int) -> float:
        """The dropout rate of each branch in a language model of so many layers."""
        # Each layer's noise is added to that of those before it: with 0.3 in each, 30 layers learned next to nothing.
        return min(0.3, 1.2 / layers) if self.branch_dropout == "auto" else self.branch_dropout

    def starts_from_model(self, crm_dim: int) -> bool:
        """Whether the item table starts at that of a CRM of width `crm_dim`."""
        if self.init_table_from_model == "auto":
            return "id" in self.item_features.split("+") and self.width(crm_dim) == crm_dim
        return self.init_table_from_model
