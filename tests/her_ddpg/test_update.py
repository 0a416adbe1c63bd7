"""The normaliser against numpy, and updates against a second implementation of the formulas."""

import copy
from typing import Any

import numpy as np
import pytest
import torch as th
from goal_envs import goal_space, point_envs
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import LinearSchedule

from sb3_pg import HERDDPG
from sb3_pg.her_ddpg.her_ddpg import deterministic_policy_loss, td_target
from sb3_pg.her_ddpg.normalizer import GoalNormalizer, RunningNormalizer


def make(n_envs: int = 2, env_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> HERDDPG:
    small: dict[str, Any] = {"batch_size": 16, "gradient_steps": 3, "policy_kwargs": {"net_arch": [8, 8]}}
    return HERDDPG("MultiInputPolicy", point_envs(n_envs, **(env_kwargs or {})), seed=0, device="cpu", **{**small, **kwargs})


# ---- normaliser ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3,), (2, 2)])
def test_statistics_equal_those_of_all_data_at_once(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    data = (rng.normal(size=(500, *shape)) * 10 + 1000 * (rng.random((500, *shape)) < 0.01) - 50).astype(np.float32)
    normalizer = RunningNormalizer(shape)
    for part in np.split(data, [1, 2, 100, 100, 300]):
        normalizer.update(th.as_tensor(part))
    clipped = np.clip(data.astype(np.float64), -200, 200)
    assert np.allclose(normalizer.mean, clipped.mean(axis=0))
    assert np.allclose(normalizer.std, clipped.std(axis=0), rtol=1e-6)
    expected = np.clip((clipped - clipped.mean(axis=0)) / clipped.std(axis=0), -5, 5)
    assert np.allclose(normalizer(th.as_tensor(data)), expected, atol=1e-5)
    assert np.abs(expected).max() < 5.0001


def test_the_normaliser_by_hand() -> None:
    normalizer = RunningNormalizer((1,), input_clip=10, clip=2, min_std=0.5)
    column = th.tensor([[-1.0], [4.0], [50.0]])
    assert normalizer(column).flatten().tolist() == [-1, 2, 2]  # no data yet: only clipped
    normalizer.update(th.tensor([[1.0], [5.0]]))  # mean 3, standard deviation 2
    assert normalizer(column).flatten().tolist() == [-2, 0.5, 2]  # (10 - 3) / 2 is more than 2
    constant = RunningNormalizer((1,))
    constant.update(th.full((7, 1), 3.0))
    assert constant.std.item() == pytest.approx(0.01)
    assert constant(th.tensor([[3.02]])).item() == pytest.approx(2, abs=1e-3)


def test_statistics_are_precise_after_many_updates() -> None:
    normalizer = RunningNormalizer((1,))
    generator = th.Generator().manual_seed(0)
    data = 100 + 0.1 * th.randn(2000, 50, 1, generator=generator)
    for part in data:
        normalizer.update(part)
    assert normalizer.std.item() == pytest.approx(data.double().std(correction=0).item(), rel=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_data_are_rejected(bad: float) -> None:
    normalizer = RunningNormalizer((2,))
    with pytest.raises(ValueError, match="not finite"):
        normalizer.update(th.tensor([[0.0, bad]]))
    assert normalizer.count == 0


@pytest.mark.parametrize("name", ["input_clip", "clip", "min_std"])
def test_bounds_must_be_positive(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        RunningNormalizer((1,), **{name: 0.0})


def test_goals_share_statistics_and_images_have_none() -> None:
    image = spaces.Box(0, 255, (3, 40, 40), np.uint8)
    normalizer = GoalNormalizer(goal_space(image, spaces.Box(-1, 1, (2,))))
    assert isinstance(normalizer.observation, th.nn.Identity)
    assert isinstance(normalizer.goal, RunningNormalizer)
    assert len(list(GoalNormalizer(goal_space(image, image)).buffers())) == 0
    disabled = GoalNormalizer(goal_space(spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (2,))), enabled=False)
    assert disabled({"observation": th.ones(1, 2) * 900, "desired_goal": th.ones(1, 2)})["observation"].max() == 900


def test_statistics_are_those_of_the_collected_data() -> None:
    model = make(n_envs=2, replay_buffer_kwargs={"n_sampled_goal": 0})
    model.learn(100)
    buffer = model.replay_buffer
    assert buffer is not None
    rows = buffer._sampleable_rows()
    normalizer = model.policy.normalizer
    assert len(rows) == 120  # cycles of 40 steps
    for module, key in ((normalizer.observation, "observation"), (normalizer.goal, "desired_goal")):
        assert isinstance(module, RunningNormalizer)
        assert module.count == 120
        assert np.allclose(module.mean, buffer._rows[key][rows].mean(axis=0), atol=1e-6)


def test_relabelled_goals_enter_the_statistics() -> None:
    model = make(n_envs=1, replay_buffer_kwargs={"goal_selection_strategy": "final", "n_sampled_goal": 10**9})
    model.learn(20)
    buffer = model.replay_buffer
    assert buffer is not None
    # int(her_ratio * 20) = 19 of 20 steps of two episodes, whose relabelled goals are the final achieved ones.
    ends = buffer._rows["achieved_goal"][[10, 21]]
    goal = model.policy.normalizer.goal
    assert isinstance(goal, RunningNormalizer)
    assert np.allclose(goal.mean, ends.mean(axis=0), atol=0.2)
    assert not np.allclose(goal.mean, buffer._rows["desired_goal"][[0, 11]].mean(axis=0), atol=0.2)


# ---- losses ----------------------------------------------------------------------------------------------------------------


def column(*values: float) -> th.Tensor:
    return th.tensor(values, dtype=th.float32)[:, None]


def test_targets_by_hand() -> None:
    args = (column(-1, -1, 0, -1), column(0.9, 0, 0.9, 0.5), column(-5, -5, 3, -50))
    assert td_target(*args, bounds=None).flatten().tolist() == pytest.approx([-5.5, -1, 2.7, -26])
    assert td_target(*args, bounds=(-10, 0)).flatten().tolist() == pytest.approx([-5.5, -1, 0, -10])


def test_the_actors_loss_by_hand() -> None:
    loss = deterministic_policy_loss(column(1, 3), th.tensor([[0.5, 0.0], [1.0, -1.0]]), 2.0)
    assert loss.item() == pytest.approx(-2 + 2 * (0.25 + 0 + 1 + 1) / 4)


@pytest.mark.parametrize(
    ("reward_range", "gamma", "bounds"),
    [
        ((-1, 0), 0.98, (-50, 0)),
        ((0, 1), 0.9, (0, 10)),
        ((-1, 1), 0.5, (-2, 2)),
        ((-3, -1), 0.5, (-6, -1)),
        ((1, 2), 0.5, (1, 4)),
        ((-float("inf"), 0), 0.9, (-float("inf"), 0)),
        (None, 0.9, None),
    ],
)
def test_bounds_of_targets(reward_range: Any, gamma: float, bounds: Any) -> None:
    model = make()
    model.reward_range, model.gamma = reward_range, gamma
    assert model.target_bounds == (bounds if bounds is None else pytest.approx(bounds))


# ---- updates ---------------------------------------------------------------------------------------------------------------

OPTIONS: list[dict[str, Any]] = [
    {},
    {"reward_range": (-1, 0), "gamma": 0.5},
    {"reward_range": None},
    {"action_l2": 0.0},
    {"normalize_inputs": False},
    {"target_update": "step", "tau": 0.3},
    {"n_steps": 3},
    {"terminate_on_success": True},
    {"policy_kwargs": {"net_arch": [8], "n_critics": 2}},
    {"policy_kwargs": {"net_arch": [8], "normalizer_kwargs": {"clip": 0.5}}},
    {"learning_rate": LinearSchedule(1e-2, 0.0, 1.0)},
]


class Reference:
    """
    DDPG on recorded batches in plain functions, including Adam.

    :param model: model with the initial networks
    """

    def __init__(self, model: HERDDPG) -> None:
        policy, self.model = model.policy, model
        self.networks = {
            name: [p.detach().double().clone() for p in getattr(policy, name).parameters()]
            for name in ("actor", "critic", "actor_target", "critic_target")
        }
        self.n_critics = len(policy.critic.q_networks)
        self.moments = {
            name: [(th.zeros_like(p), th.zeros_like(p)) for p in self.networks[name]] for name in ("actor", "critic")
        }
        self.t = 0

    def inputs(self, observations: dict[str, th.Tensor]) -> th.Tensor:
        normalizer = self.model.policy.normalizer
        parts = []
        for module, key in ((normalizer.goal, "desired_goal"), (normalizer.observation, "observation")):
            x = observations[key].double()
            if isinstance(module, RunningNormalizer):
                std = (module.squares / module.count).sqrt().clamp(min=module.min_std)
                x = ((x.clamp(-200, 200) - module.mean) / std).clamp(-module.clip, module.clip)
            parts.append(x)
        return th.cat(parts, dim=1)

    @staticmethod
    def mlp(x: th.Tensor, parameters: list[th.Tensor]) -> th.Tensor:
        for weight, bias in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
            x = th.relu(x @ weight.T + bias)
        return x @ parameters[-2].T + parameters[-1]

    def q(self, name: str, x: th.Tensor, a: th.Tensor, parameters: list[th.Tensor] | None = None) -> list[th.Tensor]:
        weights = self.networks[name] if parameters is None else parameters
        size = len(weights) // self.n_critics
        return [self.mlp(th.cat([x, a], 1), weights[i * size : (i + 1) * size]) for i in range(self.n_critics)]

    def step(self, sample: Any, lr: float) -> None:
        model, net = self.model, self.networks
        x, y, a = self.inputs(sample.observations), self.inputs(sample.next_observations), sample.actions.double()
        next_q = th.stack(self.q("critic_target", y, th.tanh(self.mlp(y, net["actor_target"])))).min(0).values
        target = sample.rewards.double() + sample.discounts.double() * (1 - sample.dones.double()) * next_q
        if model.reward_range is not None:
            assert model.gamma is not None
            target = target.clamp(model.reward_range[0] / (1 - model.gamma), 0)
        self.t += 1
        leaves = [p.clone().requires_grad_() for p in net["critic"]]
        loss = sum((((q - target) ** 2).mean() for q in self.q("critic", x, a, leaves)), th.zeros(()))
        self.adam("critic", th.autograd.grad(loss, leaves), lr)
        leaves = [p.clone().requires_grad_() for p in net["actor"]]
        pi = th.tanh(self.mlp(x, leaves))
        loss = -self.q("critic", x, pi)[0].mean() + model.action_l2 * (pi**2).mean()
        self.adam("actor", th.autograd.grad(loss, leaves), lr)
        if model.target_update == "step":
            self.update_targets()

    def adam(self, name: str, gradients: Any, lr: float) -> None:
        for i, g in enumerate(gradients):
            m, v = self.moments[name][i]
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            self.moments[name][i] = m, v
            change = (m / (1 - 0.9**self.t)) / ((v / (1 - 0.999**self.t)).sqrt() + 1e-8)
            self.networks[name][i] = self.networks[name][i] - lr * change

    def update_targets(self) -> None:
        for name in ("actor", "critic"):
            pairs = zip(self.networks[name], self.networks[f"{name}_target"], strict=True)
            self.networks[f"{name}_target"] = [(1 - self.model.tau) * old + self.model.tau * new for new, old in pairs]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_cycles_equal_the_formulas(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(env_kwargs={"terminate": "terminate_on_success" in options}, **options)
    model.learn(80)
    buffer = model.replay_buffer
    assert buffer is not None
    samples: list[Any] = []
    original = buffer.sample

    def record(batch_size: int) -> Any:
        samples.append(original(batch_size))
        return samples[-1]

    monkeypatch.setattr(buffer, "sample", record)
    reference = Reference(model)
    for optimizer in (model.actor.optimizer, model.critic.optimizer):
        optimizer.state.clear()
    model._current_progress_remaining = 0.5
    before = {name: list(values) for name, values in reference.networks.items()}
    for cycle in range(3):
        model.train(3, 16)
        for sample in samples[-3:]:
            reference.step(sample, lr=model.lr_schedule(0.5))
        if model.target_update == "cycle":
            reference.update_targets()
        assert len(samples) == 3 * (cycle + 1)
    for name, expected in reference.networks.items():
        for value, wanted, old in zip(getattr(model.policy, name).parameters(), expected, before[name], strict=True):
            # Relative to the change of the parameters: Adam amplifies rounding errors where gradients are nearly zero.
            assert (value.double() - wanted).norm() <= 2e-3 * (wanted - old).norm() + 1e-7
            assert "target" in name or (wanted - old).norm() > 0


def test_the_critic_gets_no_gradient_in_the_actor_step() -> None:
    model = make()
    model.learn(40)
    model.critic.optimizer.zero_grad()
    before = copy.deepcopy(model.critic.state_dict())
    model._actor_step(model._sample_batch(8))
    assert all(p.grad is None for p in model.critic.parameters())
    assert all((before[key] == value).all() for key, value in model.critic.state_dict().items())


class LearnedExtractor(BaseFeaturesExtractor):
    """One layer with batch normalisation, for observation and desired goal."""

    def __init__(self, observation_space: spaces.Dict) -> None:
        super().__init__(observation_space, 4)
        assert set(observation_space.spaces) == {"observation", "desired_goal"}
        self.layers = th.nn.Sequential(th.nn.Linear(5, 4), th.nn.BatchNorm1d(4), th.nn.ReLU())

    def forward(self, observations: dict[str, th.Tensor]) -> th.Tensor:
        assert set(observations) == {"observation", "desired_goal"}
        assert observations["desired_goal"].abs().max() <= 5
        features: th.Tensor = self.layers(th.cat([observations["observation"], observations["desired_goal"]], dim=1))
        return features


@pytest.mark.parametrize("share", [False, True])
def test_trainable_extractors(share: bool) -> None:
    kwargs = {"net_arch": [8], "features_extractor_class": LearnedExtractor, "share_features_extractor": share}
    model = make(policy_kwargs=kwargs, tau=1.0)
    before = {name: value.clone() for name, value in model.policy.named_parameters()}
    model.learn(100)
    assert all((value != before[name]).any() for name, value in model.policy.named_parameters())
    for network, target in ((model.actor, model.actor_target), (model.critic, model.critic_target)):
        # With tau=1 the target equals the network, including batch statistics.
        other = target.state_dict()
        assert all((value == other[name]).all() for name, value in network.state_dict().items() if "num_batches" not in name)


def test_a_shared_extractor_is_averaged_once_per_target_update() -> None:
    kwargs = {"net_arch": [8], "features_extractor_class": LearnedExtractor, "share_features_extractor": True}
    model = make(policy_kwargs=kwargs, tau=0.25)
    with th.no_grad():
        for network, target in model._target_networks():
            for p in target.parameters():
                p.zero_()
            for p in network.parameters():
                p.fill_(1.0)
    model._update_targets()
    assert all((p == 0.25).all() for _, target in model._target_networks() for p in target.parameters())


def test_non_finite_losses_are_rejected() -> None:
    model = make()
    model.learn(40)
    with th.no_grad():
        next(model.critic.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match="critic loss is not finite"):
        model.train(1, 8)
