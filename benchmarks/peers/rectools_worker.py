"""RecTools' SASRec, its softmax over all items or drawn ones, trained by its own Lightning trainer and data loader."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any

import numpy as np
import pandas as pd
from pytorch_lightning import Callback, Trainer, seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel
from rectools.models.nn.item_net import IdEmbeddingsItemNet
from turns import Turns


def main() -> None:
    """Reads the settings, builds everything with RecTools' classes and trains in turns."""
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    turns = Turns()
    settings = turns.settings()
    log = pd.read_csv(
        f"{settings['folder']}/log/log.inter",
        sep="\t",
        names=[Columns.User, Columns.Item, Columns.Datetime],
        skiprows=1,
    )
    log[Columns.Datetime] = pd.to_datetime(log[Columns.Datetime], unit="s")
    log[Columns.Weight] = 1.0
    dataset = Dataset.construct(log)
    seed_everything(settings["seed"])

    def states() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        network, preparator = model.lightning_model, model.data_preparator
        readable = preparator.transform_dataset_u2i(dataset, log[Columns.User].unique())
        users, known = readable.user_id_map.external_ids, preparator.get_known_item_ids().astype(np.int64)
        loader = preparator.get_dataloader_recommend(readable, model.recommend_batch_size)
        states_UD, table_ID = network._get_user_item_embeddings(loader, "cpu")
        network.train()
        by_user = np.empty(states_UD.shape, dtype=np.float32)
        by_user[np.asarray(users, dtype=np.int64)] = states_UD.numpy()
        table = np.zeros((settings["items"], table_ID.shape[1]), dtype=np.float32)
        table[known] = table_ID[preparator.get_known_items_sorted_internal_ids()].numpy()
        mask = np.zeros(settings["items"], dtype=bool)
        mask[known] = True
        return by_user, table, mask

    class InTurns(Callback):
        """Hands each finished step to the conversation."""

        def on_train_start(self, trainer: Trainer, module: Any) -> None:
            parameters = sum(p.numel() for p in module.parameters())
            sessions = model.data_preparator.train_dataset.interactions.df.groupby(Columns.User).size()
            turns.begin(states, positions=int((sessions - 1).sum()), parameters=parameters)

        def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            turns.stepped(int((batch["yw"] > 0).sum()))

    negatives = settings["negatives"]
    model = SASRecModel(
        n_blocks=settings["layers"],
        n_heads=settings["heads"],
        n_factors=settings["dim"],
        dropout_rate=settings["dropout"],
        session_max_len=settings["max_length"],
        **({"loss": "sampled_softmax", "n_negatives": negatives} if negatives else {"loss": "softmax"}),
        lr=settings["learning_rate"],
        batch_size=settings["batch_users"],
        item_net_block_types=(IdEmbeddingsItemNet,),
        get_trainer_func=lambda: Trainer(
            max_epochs=sys.maxsize,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[InTurns()],
        ),
    )
    model.fit(dataset)


if __name__ == "__main__":
    main()
