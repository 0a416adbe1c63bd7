"""Checkpoints of the zoo's training command from which ``-i`` can resume, even if the process was killed."""

import re
from pathlib import Path

from stable_baselines3.common.callbacks import CheckpointCallback

from sb3_pg.common.files import atomic_write

REPLAY_BUFFER, VEC_NORMALIZE = "replay_buffer_", "vecnormalize_"
_MODEL = r"rl_model_(\d+)_steps\.zip"


class ResumableCheckpointCallback(CheckpointCallback):
    """
    Save the model at regular intervals, together with what is needed to resume training: the statistics of ``VecNormalize``
    and, on request, the replay buffer. Only the latest replay buffer is kept.

    All files are written atomically, the model last: if the model file exists, its companion files are complete.

    :param callback: the zoo's callback, which says when and where to save
    :param stats_path: second file for the latest statistics, where the zoo's ``enjoy`` looks for them
    :param save_replay_buffer: whether to save the replay buffer
    """

    def __init__(self, callback: CheckpointCallback, stats_path: Path, save_replay_buffer: bool) -> None:
        super().__init__(
            callback.save_freq,
            callback.save_path,
            callback.name_prefix,
            save_replay_buffer=save_replay_buffer,
            save_vecnormalize=True,
            verbose=callback.verbose,
        )
        self.stats_path = stats_path

    def _on_step(self) -> bool:
        if self.n_calls % self.save_freq == 0:
            self._save_statistics()
            buffer_path = self._save_replay_buffer()
            self.model.save(self._checkpoint_path(extension="zip"))
            if buffer_path is not None:
                self._remove_other_buffers(buffer_path)
        return True

    def _save_statistics(self) -> None:
        normalizer = self.model.get_vec_normalize_env()
        if normalizer is not None:
            for path in (self._path_of(VEC_NORMALIZE), self.stats_path):
                with atomic_write(path, "pkl") as part:
                    normalizer.save(str(part))

    def _save_replay_buffer(self) -> Path | None:
        """
        :return: path of the file; ``None`` if there is no replay buffer to save
        """
        if not self.save_replay_buffer or getattr(self.model, "replay_buffer", None) is None:
            return None
        path = self._path_of(REPLAY_BUFFER)
        self.model.save_replay_buffer(path)  # type: ignore[attr-defined]  # only off-policy algorithms have it
        return path

    def _path_of(self, kind: str) -> Path:
        return Path(self.save_path) / _name_of(kind, self.num_timesteps)

    def _remove_other_buffers(self, latest: Path) -> None:
        for path in latest.parent.glob(_name_of(REPLAY_BUFFER, "*")):
            if path != latest:
                path.unlink()


def _name_of(kind: str, n_steps: int | str) -> str:
    # Not SB3's file names: the zoo's record_training would take these files for models.
    return f"{kind}{n_steps}_steps.pkl"


def replay_buffer_was_deleted(agent: str) -> bool:
    """
    :param agent: path of a model
    :return: whether it is a checkpoint whose replay buffer has been deleted in favour of that of a later one
    """
    is_checkpoint = re.fullmatch(_MODEL, Path(agent).name) is not None
    return (
        is_checkpoint
        and companion_file(agent, REPLAY_BUFFER) is None
        and any(Path(agent).parent.glob(_name_of(REPLAY_BUFFER, "*")))
    )


def companion_file(agent: str, kind: str) -> Path | None:
    """
    Find a file that was saved together with a checkpoint.

    :param agent: path of a model
    :param kind: ``REPLAY_BUFFER`` or ``VEC_NORMALIZE``
    :return: path of the file; ``None`` if the model is not a checkpoint, or has no such file
    """
    name = re.fullmatch(_MODEL, Path(agent).name)
    path = name and Path(agent).with_name(_name_of(kind, name[1]))
    return path if path and path.is_file() else None
