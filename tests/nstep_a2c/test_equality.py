"""NStepA2C equals SB3's A2C in all that both support: signature, updates, saved files."""

import copy
import inspect
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from model_checks import Options, differences, name_of, reloaded, state_of
from smoke_envs import SCRIPTS, Script, scripted_vec_env
from stable_baselines3 import A2C
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper

from sb3_pg import NStepA2C
from sb3_pg.common.buffers import PolicyGradientBuffer

N_ROLLOUTS, N_STEPS = 50, 5
# Three environments whose episodes end in every possible way, at different steps, often several within a rollout.
THREE_SCRIPTS: list[Script] = [*SCRIPTS, [(7, "truncated"), (1, "terminated"), (1, "truncated")]]
VECTOR = spaces.Box(0.0, 2.0, (3,), np.float32)
DICTIONARY = spaces.Dict({"vector": VECTOR, "kind": spaces.Discrete(5)})


class Tape(VecEnvWrapper):
    """
    Records the answers of the environments, to replay them regardless of the actions.

    :param venv: environments
    """

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        self.first: Any = None
        self.answers: list[Any] = []

    def reset(self) -> Any:
        self.first = self.venv.reset()
        return copy.deepcopy(self.first)

    def step_wait(self) -> Any:
        self.answers.append(self.venv.step_wait())
        return copy.deepcopy(self.answers[-1])


class Replay(VecEnvWrapper):
    """
    Replays a tape.

    :param tape: recorded answers
    """

    def __init__(self, tape: Tape) -> None:
        super().__init__(tape.venv)
        self._first, self._answers = tape.first, iter(tape.answers)

    def reset(self) -> Any:
        return copy.deepcopy(self._first)

    def step_async(self, actions: np.ndarray) -> None:
        pass

    def step_wait(self) -> Any:
        return copy.deepcopy(next(self._answers))


class Extractor(BaseFeaturesExtractor):
    """
    A layer with parameters, so that sharing it makes a difference.

    :param observation_space: vector
    """

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, features_dim=8)
        self.layer = th.nn.Linear(observation_space.shape[0], 8)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return th.tanh(self.layer(observations))


def envs(action: spaces.Space[Any] | None = None, dictionary: bool = False) -> DummyVecEnv:
    def vector(*indices: int) -> np.ndarray:
        number, episode, step = indices
        return np.array([number / 3, episode % 5 / 5, step / 10], dtype=np.float32)

    def both(*indices: int) -> dict[str, Any]:
        return {"vector": vector(*indices), "kind": np.int64(indices[1] % 5)}

    space = DICTIONARY if dictionary else VECTOR
    observe: Callable[[int, int, int], Any] = both if dictionary else vector
    return scripted_vec_env(THREE_SCRIPTS, action_space=action, observe=observe, observation_space=space)


def arguments(dictionary: bool = False, **options: Any) -> Options:
    policy = "MultiInputPolicy" if dictionary else "MlpPolicy"
    return {"policy": policy, "n_steps": N_STEPS, "learning_rate": 2e-3, "seed": 1, "device": "cpu", **options}


def theirs_and_tape(env: VecEnv, **options: Any) -> tuple[A2C, Tape, list[np.ndarray]]:
    """Trained A2C of SB3, the recorded answers of its environments and the sampled actions."""
    tape, actions = Tape(env), []
    model = A2C(env=tape, **options)
    distribution = model.policy.action_dist
    sample = distribution.get_actions

    def recorded(deterministic: bool = False) -> th.Tensor:
        actions.append(sample(deterministic).numpy())
        return th.as_tensor(actions[-1].copy())

    distribution.get_actions = recorded  # type: ignore[method-assign]  # recorded
    model.learn(N_ROLLOUTS * N_STEPS * env.num_envs)
    return model, tape, [action.reshape(-1, *(env.action_space.shape or ())) for action in actions]


def flat(state: dict[str, th.Tensor]) -> th.Tensor:
    return th.cat([state[name].ravel() for name in sorted(state)])


def assert_close(ours: NStepA2C, theirs: A2C, start: dict[str, th.Tensor], atol: float) -> None:
    """Every tensor has changed, to the same values."""
    got, expected = ours.policy.state_dict(), theirs.policy.state_dict()
    assert got.keys() == expected.keys() == start.keys()
    for name, tensor in expected.items():
        assert (tensor - start[name]).abs().max() > 1e-3, name
        assert (got[name] - tensor).abs().max() < atol, name


BOX = spaces.Box(-0.5, 0.5, (2,), np.float32)
EXTRACTOR: Options = {"features_extractor_class": Extractor}
CASES: list[Options] = [
    *({"action": action, "normalize_advantage": on, "gae_lambda": lambda_}
      for action in (None, BOX) for on in (False, True) for lambda_ in (1.0, 0.9)),
    {"ent_coef": 0.05, "vf_coef": 0.2, "gamma": 0.9},
    {"action": BOX, "ent_coef": 0.05, "max_grad_norm": 0.1},
    {"action": spaces.MultiDiscrete([2, 3]), "ent_coef": 0.01},
    {"action": spaces.MultiBinary(2), "gae_lambda": 0.5},
    {"action": BOX, "use_sde": True, "ent_coef": 0.01},
    {"action": BOX, "use_sde": True, "sde_sample_freq": 2, "policy_kwargs": {"squash_output": True}},
    *({"policy_kwargs": {**EXTRACTOR, "share_features_extractor": shared}, "action": action}
      for shared in (True, False) for action in (None, BOX)),
    {"dictionary": True},
    {"dictionary": True, "action": BOX, "normalize_advantage": True, "policy_kwargs": {"share_features_extractor": False}},
    {"learning_rate": lambda progress: 4e-3 * progress, "rms_prop_eps": 1e-3},
    {"policy_kwargs": {"optimizer_class": RMSpropTFLike, "optimizer_kwargs": {"eps": 1e-5}}, "learning_rate": 0.5},
    {"use_rms_prop": False},
    {"use_rms_prop": False, "action": BOX, "normalize_advantage": True},
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_the_same_rollouts_lead_to_the_same_parameters(case: Options) -> None:
    """Both get the fifty rollouts that SB3's A2C collected, with terminations and truncations."""
    case = copy.copy(case)
    env = envs(case.pop("action", None), case.get("dictionary", False))
    options = {"use_rms_prop": True, **arguments(**case)}
    theirs, tape, actions = theirs_and_tape(env, **options)
    cuts = [info.get("TimeLimit.truncated", False) for *_, infos in tape.answers for info in infos]
    ends = [bool(done) for *_, dones, _ in tape.answers for done in dones]
    assert len(tape.answers) == N_ROLLOUTS * N_STEPS
    assert sum(cuts) > 50
    assert sum(ends) - sum(cuts) > 50
    ours = NStepA2C(env=Replay(tape), **options)
    start = copy.deepcopy(ours.policy.state_dict())
    recorded = iter(actions)
    # Replay A2C's actions, on the fast path if there is one.
    steps: Any = ours._fast_path() or ours
    steps.sample_actions = lambda obs, with_values=True: (next(recorded), None)  # noqa: ARG005 # name of the original
    ours.learn(N_ROLLOUTS * N_STEPS * env.num_envs)
    assert ours._n_updates == theirs._n_updates == N_ROLLOUTS
    assert next(recorded, None) is None
    assert_close(ours, theirs, start, atol=2e-5)


@pytest.mark.parametrize(
    ("action", "dictionary"), [(None, False), (BOX, False), (BOX, True), (None, True), (spaces.MultiBinary(2), False)], ids=str
)
def test_independent_runs_agree(action: Any, dictionary: bool) -> None:
    """Same seed, same initial network, same actions, until a rounding error flips one of them."""
    models, starts = [], []
    for algorithm in (A2C, NStepA2C):
        model = algorithm(env=Tape(envs(action, dictionary)), **arguments(dictionary, use_rms_prop=True))
        starts.append(state_of(model)["policy"])
        models.append(model.learn(10 * N_STEPS * 3))
    assert differences(*starts) == []
    theirs, ours = ([answer[1] for answer in model.env.answers] for model in models)  # type: ignore[union-attr]  # a Tape
    assert len(np.unique(theirs)) > 10
    assert np.allclose(theirs, ours, atol=1e-4)
    ends = [flat(model.policy.state_dict()) for model in models]
    assert th.allclose(ends[0], ends[1], atol=1e-4)


# ------------------------------------------------------------------------------------------------------------- arguments


def test_every_argument_of_sb3_keeps_its_name_place_and_default() -> None:
    ours, theirs = (inspect.signature(algorithm.__init__).parameters for algorithm in (NStepA2C, A2C))
    assert list(ours)[: len(theirs)] == list(theirs)
    assert all(ours[name].kind is theirs[name].kind for name in theirs)
    assert {name for name in theirs if ours[name].default != theirs[name].default} == {"use_rms_prop"}
    assert ours["use_rms_prop"].default is False
    own = {name: ours[name] for name in ours if name not in theirs}
    assert own.keys() == {"return_steps", "value_learning_rate"}
    assert all(parameter.kind is parameter.KEYWORD_ONLY and parameter.default is None for parameter in own.values())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (th.optim.Adam, {"eps": 1e-5})),  # epsilon of SB3's policies
        ({"use_rms_prop": True}, (th.optim.RMSprop, {"alpha": 0.99, "eps": 1e-5, "weight_decay": 0})),
        ({"use_rms_prop": True, "rms_prop_eps": 1e-3}, (th.optim.RMSprop, {"eps": 1e-3})),
        ({"use_rms_prop": "tf"}, (RMSpropTFLike, {"alpha": 0.99, "eps": 1e-5, "weight_decay": 0})),
        ({"use_rms_prop": True, "policy_kwargs": {"optimizer_class": th.optim.SGD}}, (th.optim.SGD, {})),
    ],
    ids=str,
)
@pytest.mark.parametrize("rate", [None, 1e-3])
def test_optimizers(options: Options, expected: tuple[Any, Options], rate: float | None) -> None:
    given = copy.deepcopy(options.get("policy_kwargs"))
    model = NStepA2C(env=envs(), **arguments(**options, value_learning_rate=rate))
    assert (model.value_optimizer is None) == (rate is None)
    for optimizer in (model.policy.optimizer, model.value_optimizer):
        if optimizer is not None:
            assert type(optimizer) is expected[0]
            assert {name: optimizer.param_groups[0][name] for name in expected[1]} == expected[1]
    assert options.get("policy_kwargs") == given  # the caller's dictionary is not modified


def test_tensorflows_rmsprop_takes_smaller_first_steps() -> None:
    """Its mean square starts at 1, so the first step is learning_rate * gradient / sqrt(0.99), not ten times its sign."""
    moved: dict[Any, float] = {}
    for flavour in ("tf", True):
        model = NStepA2C(env=envs(), **arguments(use_rms_prop=flavour, learning_rate=1e-3, max_grad_norm=1e-2))
        before = flat(copy.deepcopy(model.policy.state_dict()))
        model.learn(N_STEPS * 3)
        moved[flavour] = float((flat(model.policy.state_dict()) - before).norm())
    assert moved["tf"] == pytest.approx(1e-3 * 1e-2 / np.sqrt(0.99), rel=1e-2)
    assert moved[True] > 100 * moved["tf"]


# ------------------------------------------------------------------------------------------------------ custom buffers


class Halved(RolloutBuffer):
    """
    Scaled advantages.

    :param args: as in the base class
    :param factor: factor of the advantages
    :param kwargs: as in the base class
    """

    def __init__(self, *args: Any, factor: float = 0.5, **kwargs: Any) -> None:
        self.factor = factor
        super().__init__(*args, **kwargs)

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: np.ndarray) -> None:
        super().compute_returns_and_advantage(last_values, dones)
        self.advantages *= self.factor


@pytest.mark.parametrize("kwargs", [None, {"factor": 0.1}], ids=str)
@pytest.mark.parametrize("action", [None, BOX], ids=str)
def test_a_custom_buffer_is_used_as_in_a2c(action: Any, kwargs: Options | None) -> None:
    """Bitwise, since SB3's code runs."""
    options = arguments(use_rms_prop=True, rollout_buffer_class=Halved, rollout_buffer_kwargs=kwargs, gae_lambda=0.9)
    theirs, ours = (algorithm(env=envs(action), **options).learn(300) for algorithm in (A2C, NStepA2C))
    assert isinstance(ours.rollout_buffer, Halved)
    assert differences(state_of(theirs), state_of(ours)) == []
    plain = NStepA2C(env=envs(action), **arguments(use_rms_prop=True, gae_lambda=0.9)).learn(300)
    assert not th.allclose(flat(plain.policy.state_dict()), flat(ours.policy.state_dict()), atol=1e-3)
    again = reloaded(ours, env=envs(action)).learn(300)
    assert isinstance(again.rollout_buffer, Halved)


def test_sb3s_own_buffer_is_replaced_by_ours() -> None:
    states = [
        state_of(NStepA2C(env=envs(), **arguments(rollout_buffer_class=chosen)).learn(60))["policy"]
        for chosen in (None, RolloutBuffer, PolicyGradientBuffer)
    ]
    for one, other in itertools.pairwise(states):
        assert differences(one, other) == []


# ----------------------------------------------------------------------------------------------------------- saved files


@pytest.mark.parametrize("use_rms_prop", [True, False])
@pytest.mark.parametrize("dictionary", [False, True])
@pytest.mark.parametrize(("writer", "reader"), [(A2C, NStepA2C), (NStepA2C, A2C)])
def test_each_class_continues_models_of_the_other(writer: Any, reader: Any, dictionary: bool, use_rms_prop: bool) -> None:
    options = arguments(dictionary, use_rms_prop=use_rms_prop, ent_coef=0.01)
    saved = writer(env=envs(BOX, dictionary), **options).learn(120)
    same, other = (reloaded(saved, as_, env=envs(BOX, dictionary)) for as_ in (writer, reader))
    assert type(other) is reader
    # Fused or not, the arithmetic is the same.
    assert {path.rpartition("/")[2] for path in differences(state_of(saved), state_of(other))} <= {"fused"}
    for model in (same, other):
        model.set_random_seed(7)
        model.learn(60, reset_num_timesteps=False)
    assert same.num_timesteps == other.num_timesteps == 180
    assert same._n_updates == other._n_updates == 12
    assert th.allclose(flat(same.policy.state_dict()), flat(other.policy.state_dict()), atol=1e-4)
    assert isinstance(other.rollout_buffer, PolicyGradientBuffer) == (reader is NStepA2C)


def test_networks_of_a2c_can_be_loaded_into_a_model_with_two_optimizers() -> None:
    theirs = A2C(env=envs(), **arguments()).learn(60)
    ours = NStepA2C(env=envs(), **arguments(seed=5, value_learning_rate=1e-3))
    networks: Any = {"policy": theirs.get_parameters()["policy"]}
    ours.set_parameters(networks, exact_match=False)
    assert isinstance(ours.policy, ActorCriticPolicy)
    assert th.equal(flat(ours.policy.state_dict()), flat(theirs.policy.state_dict()))
    ours.learn(60)
