"""RecBole's SASRec with cross-entropy, trained by RecBole's own trainer on its own data loader."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from recbole.config import Config
from recbole.data import create_dataset
from recbole.data.dataloader import TrainDataLoader
from recbole.model.sequential_recommender import SASRec
from recbole.trainer import Trainer
from recbole.utils import init_seed
from turns import Turns


def main() -> None:
    """Reads the settings, builds everything with RecBole's classes and trains in turns."""
    turns = Turns()
    settings = turns.settings()
    config = Config(
        model="SASRec",
        dataset="log",
        config_dict={
            "data_path": settings["folder"],
            "checkpoint_dir": settings["folder"],
            "load_col": {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id"]},
            # Everything in the files is for training.
            "eval_args": {"split": {"RS": [1, 0, 0]}, "order": "TO", "group_by": "user", "mode": "full"},
            "MAX_ITEM_LIST_LENGTH": settings["max_length"],
            "hidden_size": settings["dim"],
            "inner_size": 4 * settings["dim"],
            "n_layers": settings["layers"],
            "n_heads": settings["heads"],
            "hidden_dropout_prob": settings["dropout"],
            "attn_dropout_prob": settings["dropout"],
            "loss_type": "CE",
            "train_neg_sample_args": None,
            "train_batch_size": settings["batch_positions"],
            "learning_rate": settings["learning_rate"],
            "seed": settings["seed"],
            "use_gpu": False,
            "show_progress": False,
        },
    )
    logging.disable(logging.INFO)
    init_seed(config["seed"], config["reproducibility"])
    dataset = create_dataset(config)
    train = dataset.build()[0]
    loader = TrainDataLoader(config, train, None, shuffle=True)
    model = SASRec(config, train)
    trainer = Trainer(config, model)

    log = pd.read_csv(f"{settings['folder']}/log/log.inter", sep="\t", names=["user", "item", "at"], skiprows=1)
    token = dataset.token2id(dataset.iid_field, [str(item) for item in range(settings["items"])])
    histories = [token[items.to_numpy()[-settings["max_length"] :]] for _, items in log.groupby("user")["item"]]

    def states() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        model.eval()
        rows = []
        with torch.inference_mode():
            for start in range(0, len(histories), 256):
                chosen = histories[start : start + 256]
                items = np.zeros((len(chosen), settings["max_length"]), dtype=np.int64)
                for row, history in zip(items, chosen, strict=True):
                    row[: len(history)] = history
                rows.append(model(torch.from_numpy(items), torch.tensor([len(history) for history in chosen])))
        model.train()
        table = model.item_embedding.weight.detach()[torch.from_numpy(np.asarray(token))]
        return torch.cat(rows).numpy(), table.numpy(), np.ones(len(token), dtype=bool)

    turns.begin(states, positions=len(train), parameters=sum(p.numel() for p in model.parameters()))
    for epoch in itertools.count():
        trainer._train_epoch(_watched(loader, turns), epoch)


def _watched(loader: TrainDataLoader, turns: Turns) -> Iterator:
    """The loader's batches; the next one is asked for when the step of the one before is done."""
    for batch in loader:
        yield batch
        turns.stepped(len(batch))


if __name__ == "__main__":
    main()
