"""
Fifty updates of each algorithm in eight configurations, recorded before the reference path was rewritten.

``python tests/conformance/recorded.py`` records the parameters again. Do that only after a deliberate change of what
an algorithm computes: ``test_recorded.py`` compares the present code with the file.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

FILE = Path(__file__).parent / "data" / "updates.npz"
N_UPDATES = 50

# With small networks, rounding errors stay small for fifty updates.
_NET: dict[str, Any] = {"net_arch": [16, 16]}
_POLICY: dict[str, Any] = {"policy": "MlpPolicy", "policy_kwargs": _NET, "seed": 3, "device": "cpu"}
_CARTPOLE = {**_POLICY, "env": "CartPole-v1"}
_PENDULUM = {**_POLICY, "env": "Pendulum-v1"}
_REPLAY = {**_PENDULUM, "learning_starts": 32, "batch_size": 32, "buffer_size": 500, "td_lambda": 0.0}
_SEGMENTS = {**_REPLAY, "td_lambda": 0.9, "segment_length": 4}
_GOALS = {
    **_POLICY,
    "policy": "MultiInputPolicy",
    "env": "PointGoal-v0",
    "batch_size": 32,
    "gradient_steps": 5,
    "train_freq": (1, "episode"),
}

CONFIGURATIONS: dict[str, dict[str, dict[str, Any]]] = {
    "vpg": {
        "gae": {**_CARTPOLE, "n_steps": 16},
        "joint": {**_CARTPOLE, "n_steps": 16, "n_value_updates": 0, "vf_coef": 0.3, "max_grad_norm": 0.5},
        "n_step": {**_CARTPOLE, "n_steps": 16, "advantage_estimator": "n_step", "return_steps": 4, "ent_coef": 0.01},
        "box": {**_PENDULUM, "n_steps": 16, "normalize_advantage": True, "value_batch_size": 8},
        "critic_first": {**_PENDULUM, "n_steps": 16, "critic_first": True, "n_value_updates": 2},
        "reinforce": {**_CARTPOLE, "n_episodes": 2, "advantage_estimator": "total_return", "baseline": "none"},
        "mean": {**_CARTPOLE, "n_episodes": 3, "advantage_estimator": "reward_to_go", "baseline": "mean"},
        "optimal": {**_CARTPOLE, "n_episodes": 3, "advantage_estimator": "reward_to_go", "baseline": "optimal"},
    },
    "nstep_a2c": {
        "rollout": _CARTPOLE,
        "return_steps": {**_CARTPOLE, "n_steps": 8, "return_steps": 3},
        "gae": {**_CARTPOLE, "gae_lambda": 0.9, "normalize_advantage": True},
        "box": {**_PENDULUM, "ent_coef": 0.01},
        "rms_prop": {**_CARTPOLE, "use_rms_prop": True},
        "rms_prop_tf": {**_PENDULUM, "use_rms_prop": "tf"},
        "value_learning_rate": {**_CARTPOLE, "value_learning_rate": "lin_1e-2", "max_grad_norm": None},
        "sde": {**_PENDULUM, "use_sde": True},
    },
    "svg0": {
        "td0": _REPLAY,
        "retrace": _SEGMENTS,
        "lambda": {**_SEGMENTS, "off_policy_correction": "none", "state_dependent_covariance": False},
        "entropy": {**_REPLAY, "n_critics": 2, "ent_coef": "auto"},
        "full": {**_SEGMENTS, "covariance": "full", "n_action_samples": 3, "ent_coef": 0.1},
        "likelihood_ratio": {**_REPLAY, "gradient_estimator": "likelihood_ratio", "squash_output": False},
        "isotropic": {**_REPLAY, "covariance": "isotropic", "n_action_samples": 2, "ent_coef": 0.05},
        "on_policy": {**_PENDULUM, "on_policy": True, "train_freq": 8},
    },
    "her_ddpg": {
        "default": _GOALS,
        "step": {**_GOALS, "target_update": "step", "tau": 0.01},
        "n_steps": {**_GOALS, "n_steps": 3},
        "critics": {**_GOALS, "policy_kwargs": {**_NET, "n_critics": 2}},
        "plain": {**_GOALS, "normalize_inputs": False, "action_l2": 0.0, "reward_range": None},
        "final": {**_GOALS, "replay_buffer_kwargs": {"goal_selection_strategy": "final"}},
        "noise": {**_GOALS, "action_noise_std": 0.05, "random_eps": 0.0, "learning_rate": 1e-2},
        "steps": {**_GOALS, "train_freq": 5, "gradient_steps": 2},
    },
}


def parameters_after_updates(algorithm: type[Any], options: dict[str, Any]) -> npt.NDArray[np.float32]:
    """
    :param algorithm: class of the algorithm
    :param options: arguments of its constructor
    :return: all parameters after :data:`N_UPDATES` updates (rollouts of NStepA2C and VPG), flattened
    """
    from stable_baselines3.common.callbacks import BaseCallback

    class Stop(BaseCallback):
        """Stops training after enough updates."""

        def _on_step(self) -> bool:
            return self.model._n_updates < N_UPDATES

    model = algorithm(**options).learn(100_000, callback=Stop())
    return np.concatenate([p.detach().numpy().ravel() for p in model.policy.parameters()])


def main() -> None:
    """Record all configurations."""
    import conftest  # noqa: F401  # registers PointGoal-v0

    from sb3_pg.registry import ALGOS

    recorded = {}
    for key, configurations in CONFIGURATIONS.items():
        for name, options in configurations.items():
            recorded[f"{key}/{name}"] = parameters_after_updates(ALGOS[key].load_class(), options)
            print(key, name, len(recorded[f"{key}/{name}"]), flush=True)
    FILE.parent.mkdir(exist_ok=True)
    np.savez_compressed(FILE, **recorded)  # type: ignore[arg-type]  # numpy's stubs take names for its own argument


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    main()
