import subprocess
import sys

import pytest
from filelock import FileLock

from llmd4rec.distill.settings import MutualDistillation
from llmd4rec.errors import RunError

HOLD = """
import sys, time
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_trainings_do_not_share_a_folder_and_a_dead_ones_lock_is_gone(chain_data, tmp_path):
    settings = MutualDistillation.model_validate({"rounds": 0, "training": {"crm": {"epochs": 1}}})
    settings.fit(chain_data, tmp_path / "first")
    folder = tmp_path / "run"
    (tmp_path / "first").rename(folder)
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(folder / ".lock")], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(RunError, match="being trained by another process"):
        settings.fit(chain_data, folder)
    holder.kill()
    holder.wait()
    assert settings.fit(chain_data, folder).record.finished
    with FileLock(folder / ".lock", timeout=0):
        pass  # and it was released
