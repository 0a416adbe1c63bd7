"""
What users do to a model in mid-training has its effect, as in Stable-Baselines3, whether the fast path is on or off.

Each row of the table changes a model, before training or in a callback in the middle of it. The effect is checked with the
fast path, without it, and with SB3's class; with and without the fast path the trained parameters are equal.
"""

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any

import cloudpickle  # type: ignore[import-untyped]  # it has no types
import numpy as np
import pytest
import torch as th
from conformance.specs import SPECS, Options, Spec
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn
from torch.nn.utils import parameters_to_vector, parametrize, vector_to_parameters
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from sb3_pg import SVG0, VPG, fast

# Vectorised steps of two environments: updates before and after, and no end of a rollout at the change.
N_ENVS, CHANGE_AT, N_STEPS = 2, 13, 26
# Without noise, what the policy computes is what the environments get.
QUIET: dict[str, Options] = {"her_ddpg": {"random_eps": 0.0, "action_noise_std": 0.0}}
LARGE, VALUE = 40.0, 2.0


@dataclass
class Log:
    """
    What one training run tells.

    :param hits: calls that the change counts
    :param before: parameters when the change had just been made
    :param actions: those taken after it
    :param undo: takes back what is global
    :param notes: anything else that a change leaves for the check
    """

    hits: int = 0
    before: dict[str, th.Tensor] = field(default_factory=dict)
    actions: list[Any] = field(default_factory=list)
    undo: ExitStack = field(default_factory=ExitStack)
    notes: dict[str, Any] = field(default_factory=dict)

    def count(self, *_: Any, **__: Any) -> None:
        """Count a call; as a hook it changes nothing."""
        self.hits += 1


Change = Callable[[Any, Log], None]


@dataclass(frozen=True)
class Row:
    """
    A line of the table.

    :param change: what is done to a model
    :param checks: what must have come of it after the training
    :param at: ``"start"``, before the training; ``"step"``, at a step in the middle of it
    :param on_policy: whether it is for on-policy algorithms alone, or for off-policy ones alone; ``None``: for all
    :param options: arguments of the models
    :param peer: whether SB3's class shows the effect
    """

    change: Change
    checks: tuple[Change, ...]
    at: str = "step"
    on_policy: bool | None = None
    options: Options = field(default_factory=dict)
    peer: bool = True


class Intervene(BaseCallback):
    """
    Makes the change, and records what follows.

    :param row: of the table
    :param log: filled
    """

    def __init__(self, row: Row, log: Log) -> None:
        super().__init__()
        self.row, self.log = row, log

    def _on_step(self) -> bool:
        if self.log.before:
            self.log.actions.extend(np.array(self.locals["actions"]))
        if self.n_calls == CHANGE_AT and self.row.at == "step":
            change(self.model, self.row, self.log)
        return True


def change(model: Any, row: Row, log: Log) -> None:
    """
    :param model: changed
    :param row: says how
    :param log: gets the parameters after the change
    """
    row.change(model, log)
    log.before = {name: value.detach().clone() for name, value in model.policy.named_parameters()}


def trained(model: Any, row: Row) -> Log:
    """
    :param model: trained, with the change
    :param row: of the table
    :return: what happened; the checks have passed
    """
    log = Log()
    with log.undo:
        if row.at == "start":
            change(model, row, log)
        model.learn(N_ENVS * N_STEPS, callback=Intervene(row, log))
    for check in row.checks:
        check(model, log)
    return log


# --------------------------------------------------------------------------------------------------------- parts of a model


def output_layer(model: Any) -> tuple[nn.Module, str]:
    """
    :param model: of any algorithm
    :return: module that holds the last linear layer of the actor, and its name there
    """
    if hasattr(model.policy, "action_net"):
        return model.policy, "action_net"
    mu = model.actor.mu
    return (mu, last_linear(mu)) if isinstance(mu, nn.Sequential) else (model.actor, "mu")


def value_layer(model: Any) -> tuple[nn.Module, str]:
    """
    :param model: of any algorithm
    :return: module that holds the last linear layer of the (first) critic, and its name there
    """
    if hasattr(model.policy, "value_net"):
        return model.policy, "value_net"
    return model.critic.qf0, last_linear(model.critic.qf0)


def last_linear(network: nn.Module) -> str:
    """
    :param network: sequence of layers
    :return: name of the last that has weights
    """
    return [name for name, layer in network.named_children() if isinstance(layer, nn.Linear)][-1]


def layer_of(place: tuple[nn.Module, str]) -> Any:
    """
    :param place: module and name
    :return: what is there
    """
    return getattr(*place)


def constant_layer(layer: nn.Linear, value: float = LARGE) -> nn.Linear:
    """
    :param layer: any
    :param value: of the output
    :return: a layer of the same shape whose output does not depend on the input
    """
    constant = copy.deepcopy(layer)
    constant.weight.data.zero_()
    constant.bias.data.fill_(value)
    return constant


def largest(model: Any) -> nn.Linear:
    """
    :param model: of any algorithm
    :return: an output layer with which the actor takes the greatest action, or the first of several
    """
    layer = constant_layer(layer_of(output_layer(model)))
    if isinstance(model.action_space, spaces.Discrete):
        layer.bias.data[1:] *= -1
    return layer


def is_critic(name: str) -> bool:
    """
    :param name: of a parameter
    :return: whether it is the critic's
    """
    return name.startswith("critic.") or "value" in name


def is_actor(name: str) -> bool:
    """
    :param name: of a parameter
    :return: whether it is the actor's
    """
    return not is_critic(name) and "_target." not in name


def actor_optimizer(model: Any) -> tuple[Any, str]:
    """
    :param model: of any algorithm
    :return: who has the optimizer of the actor, and its name there
    """
    return (model.actor if hasattr(model, "actor") else model.policy), "optimizer"


# ---------------------------------------------------------------------------------------------------------------- checks


def acts(model: Any, log: Log) -> None:
    """
    :param model: after training
    :param log: every action after the change was that of :func:`largest`
    """
    expected = 0 if isinstance(model.action_space, spaces.Discrete) else model.action_space.high
    assert len(log.actions) >= N_ENVS * (N_STEPS - CHANGE_AT)
    assert np.allclose(log.actions, expected, atol=1e-4)


def was_called(_: Any, log: Log) -> None:
    """
    :param log: with hits
    """
    assert log.hits > 0


def moved(model: Any, log: Log, which: Callable[[str], bool]) -> bool:
    """
    :param model: after training
    :param log: with the parameters before
    :param which: by name
    :return: whether any of these parameters has moved since
    """
    names = [name for name, _ in model.policy.named_parameters() if which(name)]
    assert names
    parameters = dict(model.policy.named_parameters())
    return any(not th.equal(parameters[name], log.before[name]) for name in names)


def stays(which: Callable[[str], bool]) -> Change:
    """
    :param which: parameters, by name
    :return: check that they did not move, and that others did
    """

    def check(model: Any, log: Log) -> None:
        assert not moved(model, log, which)
        assert moved(model, log, lambda name: not which(name) and "_target." not in name)

    return check


def learns(place: Callable[[Any], tuple[nn.Module, str]]) -> Change:
    """
    :param place: of a layer
    :return: check that this layer moved
    """

    def check(model: Any, log: Log) -> None:
        own = {id(p) for p in layer_of(place(model)).parameters()}
        names = {name for name, p in model.policy.named_parameters() if id(p) in own}
        assert moved(model, log, lambda name: name in names)

    return check


def is_followed(model: Any, _: Log) -> None:
    """
    :param model: its target critic, with ``tau=1``, is the critic
    """
    critic, target = model.critic.state_dict(), model.critic_target.state_dict()
    assert all(th.equal(value, target[name]) for name, value in critic.items())


def values_are_constant(model: Any, _: Log) -> None:
    """
    :param model: its last rollout was judged by the changed critic
    """
    assert np.allclose(model.rollout_buffer.values, VALUE, atol=1e-4)


# --------------------------------------------------------------------------------------------------------------- changes


def replace_layer(model: Any, _: Log) -> None:
    """:param model: gets another output layer"""
    setattr(*output_layer(model), largest(model))


def assign_state(model: Any, _: Log) -> None:
    """:param model: its tensors are replaced by others"""
    other = copy.deepcopy(model.policy)
    largest_layer = largest(model)
    original = layer_of(output_layer(model))
    state = {name: value.clone() for name, value in other.state_dict().items()}
    prefix = next(name for name, module in model.policy.named_modules() if module is original)
    state |= {f"{prefix}.{name}": value.detach().clone() for name, value in largest_layer.state_dict().items()}
    model.policy.load_state_dict(state, assign=True)


def write_vector(model: Any, _: Log) -> None:
    """:param model: all its parameters become parts of one vector"""
    layer, other = layer_of(output_layer(model)), largest(model)
    values = {id(layer.weight): other.weight, id(layer.bias): other.bias}
    vector = parameters_to_vector([values.get(id(p), p) for p in model.policy.parameters()]).detach().clone()
    vector_to_parameters(vector, model.policy.parameters())


def write_data(model: Any, _: Log) -> None:
    """:param model: the data of two parameters are replaced"""
    layer, other = layer_of(output_layer(model)), largest(model)
    layer.weight.data, layer.bias.data = other.weight.data, other.bias.data


def write_in_place(model: Any, _: Log) -> None:
    """:param model: two parameters are overwritten"""
    layer, other = layer_of(output_layer(model)), largest(model)
    with th.no_grad():
        layer.weight.copy_(other.weight)
        layer.bias.copy_(other.bias)


def set_parameters(model: Any, _: Log) -> None:
    """:param model: gets what ``get_parameters`` returned, changed"""
    state = copy.deepcopy(model.get_parameters())
    write_in_place(model, _)
    state["policy"] = copy.deepcopy(model.policy.state_dict())
    model.set_parameters(state)


def patch_forward(model: Any, log: Log) -> None:
    """
    :param model: its output layer gets a ``forward`` of its own
    :param log: counts
    """
    layer, other = layer_of(output_layer(model)), largest(model)

    def forward(features: th.Tensor) -> th.Tensor:
        log.count()
        output: th.Tensor = other(features)
        return output

    layer.forward = forward


def replace_output(model: Any, log: Log) -> None:
    """
    :param model: a hook replaces the output of the last layer
    :param log: counts
    """
    other = largest(model)

    def hook(_: nn.Module, inputs: Any, __: Any) -> Any:
        log.count()
        return other(*inputs)

    layer_of(output_layer(model)).register_forward_hook(hook)


class Zero(nn.Module):
    """A parametrisation."""

    def forward(self, weight: th.Tensor) -> th.Tensor:
        """
        :param weight: any
        :return: zeros
        """
        return weight * 0


def parametrise(model: Any, _: Log) -> None:
    """:param model: its last weight becomes a function of another"""
    layer = layer_of(output_layer(model))
    layer.bias.data.copy_(largest(model).bias)
    parametrize.register_parametrization(layer, "weight", Zero())
    if hasattr(model, "actor_target"):  # averaged parameter by parameter
        parametrize.register_parametrization(
            getattr(model.actor_target.mu, last_linear(model.actor_target.mu)), "weight", Zero()
        )


def patch_extractor(model: Any, log: Log) -> None:
    """
    :param model: the hidden layers of its actor get a ``forward`` of their own
    :param log: counts
    """
    original = model.policy.mlp_extractor.forward_actor

    def forward_actor(features: th.Tensor) -> th.Tensor:
        log.count()
        output: th.Tensor = original(features) * 0
        return output

    model.policy.mlp_extractor.forward_actor = forward_actor
    layer_of(output_layer(model)).bias.data.copy_(largest(model).bias)


def zero_gradient(model: Any, log: Log) -> None:
    """
    :param model: the gradient of a weight is replaced
    :param log: counts
    """

    def hook(gradient: th.Tensor) -> th.Tensor:
        log.count()
        return gradient * 0

    layer_of(output_layer(model)).weight.register_hook(hook)


def hook_into(register: str, part: str = "") -> Change:
    """
    :param register: method that registers a hook
    :param part: attribute of the layer that has it; the layer by default
    :return: change that counts the calls of the hook
    """

    def hook(model: Any, log: Log) -> None:
        layer = layer_of(output_layer(model))
        getattr(getattr(layer, part) if part else layer, register)(log.count)

    return hook


def hook_globally(register: Callable[[Any], Any], place: Callable[[Any], tuple[Any, str]]) -> Change:
    """
    :param register: function that registers a hook for all modules, or all optimizers
    :param place: of the module or optimizer that counts
    :return: change that counts the calls of the hook
    """

    def hook(model: Any, log: Log) -> None:
        def count(caller: object, *_: Any) -> None:
            log.hits += caller is layer_of(place(model))

        log.undo.callback(register(count).remove)

    return hook


def hook_optimizer(model: Any, log: Log) -> None:
    """
    :param model: its optimizer gets hooks
    :param log: counts
    """
    optimizer = getattr(*actor_optimizer(model))
    optimizer.register_step_pre_hook(log.count)
    optimizer.register_step_post_hook(log.count)


def patch_optimizer(model: Any, log: Log) -> None:
    """
    :param model: its optimizer gets a ``step`` that does nothing
    :param log: counts
    """
    getattr(*actor_optimizer(model)).step = log.count


def replace_optimizer(model: Any, log: Log) -> None:
    """
    :param model: gets another optimizer
    :param log: counts its steps
    """
    parameters = [p for group in getattr(*actor_optimizer(model)).param_groups for p in group["params"]]
    optimizer = th.optim.SGD(parameters, lr=0.1, momentum=0.5)
    optimizer.register_step_post_hook(log.count)
    setattr(*actor_optimizer(model), optimizer)


def replace_layer_and_optimizer(model: Any, _: Log) -> None:
    """:param model: gets a new output layer, to be fine-tuned, and an optimizer that knows it"""
    place = output_layer(model)
    old = layer_of(place)
    new = nn.Linear(old.in_features, old.out_features)
    optimizer = getattr(*actor_optimizer(model))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    known = [p for p in parameters if all(p is not q for q in old.parameters())]
    assert len(known) == len(parameters) - 2
    setattr(*place, new)
    setattr(*actor_optimizer(model), th.optim.Adam([*known, *new.parameters()], lr=1e-2))


def replace_value_layer(model: Any, _: Log) -> None:
    """:param model: gets another output layer of its critic"""
    place = value_layer(model)
    setattr(*place, constant_layer(layer_of(place), VALUE))


def assign_value_layer(model: Any, _: Log) -> None:
    """:param model: the tensors of the output layer of its critic are replaced"""
    layer = layer_of(value_layer(model))
    layer.load_state_dict(constant_layer(layer, VALUE).state_dict(), assign=True)


def freeze(which: Callable[[str], bool]) -> Change:
    """
    :param which: parameters, by name
    :return: change that freezes them
    """

    def change(model: Any, _: Log) -> None:
        for name, parameter in model.policy.named_parameters():
            if which(name):
                parameter.requires_grad_(False)

    return change


def is_first_actor_weight(name: str) -> bool:
    """
    :param name: of a parameter
    :return: whether it is a weight of the first layer of the actor
    """
    return is_actor(name) and name.endswith("0.weight")


def replace_activation(model: Any, log: Log) -> None:
    """
    :param model: its first activation is replaced
    :param log: counts its calls
    """
    network = model.policy.mlp_extractor.policy_net if hasattr(model.policy, "mlp_extractor") else None
    if network is None:
        network = model.actor.mu if isinstance(model.actor.mu, nn.Sequential) else model.actor.latent_pi
    other = nn.Softsign()
    other.register_forward_hook(log.count)
    network[1] = other


def count_steps_of_the_class(_: Any, log: Log) -> None:
    """:param log: counts the steps of all vectorised environments"""
    original = DummyVecEnv.step_wait

    def step_wait(self: Any) -> Any:
        log.count()
        return original(self)

    patch = pytest.MonkeyPatch()
    patch.setattr(DummyVecEnv, "step_wait", step_wait)
    log.undo.callback(patch.undo)


def counted_every_step(_: Any, log: Log) -> None:
    """:param log: with hits"""
    assert log.hits == len(log.actions) // N_ENVS


def pickle_environments(model: Any, log: Log) -> None:
    """
    :param model: its environments are copied
    :param log: gets the copy
    """
    log.notes["copy"] = cloudpickle.loads(cloudpickle.dumps(model.env))


def copy_steps(model: Any, log: Log) -> None:
    """
    :param model: has environments of SB3's class
    :param log: has a copy that does as well
    """
    assert type(log.notes["copy"]) is type(model.env)
    log.notes["copy"].reset()
    log.notes["copy"].step(np.stack([model.action_space.sample()] * N_ENVS))


def default_to_meta(_: Any, log: Log) -> None:
    """:param log: takes it back"""
    th.set_default_device("meta")
    log.undo.callback(th.set_default_device, None)


def stays_on_cpu(model: Any, _: Log) -> None:
    """:param model: all it has is where it was told to be"""
    assert {p.device.type for p in model.policy.parameters()} == {"cpu"}


MODULES = nn.modules.module
OUTPUT_WEIGHTS = {"action_net.weight", "actor.mu.weight", "actor.mu.2.weight"}
TABLE: dict[str, Row] = {
    # Weights that are replaced or overwritten act from the next step on.
    "output layer replaced": Row(replace_layer, (acts,)),
    "load_state_dict(assign=True)": Row(assign_state, (acts,)),
    "vector_to_parameters": Row(write_vector, (acts,)),
    "data replaced": Row(write_data, (acts,)),
    "written in place": Row(write_in_place, (acts,)),
    "set_parameters": Row(set_parameters, (acts,)),
    "parametrisation": Row(parametrise, (acts,)),
    "activation replaced": Row(replace_activation, (was_called,)),
    # Patches and hooks are called.
    "forward of the output layer patched": Row(patch_forward, (acts, was_called)),
    "output replaced by a hook": Row(replace_output, (acts, was_called)),
    "forward_actor patched": Row(patch_extractor, (acts, was_called), on_policy=True),
    "gradient zeroed by a hook": Row(zero_gradient, (was_called, stays(OUTPUT_WEIGHTS.__contains__)), at="start"),
    "tensor hook": Row(zero_gradient, (was_called,)),
    "hook after accumulation": Row(hook_into("register_post_accumulate_grad_hook", "weight"), (was_called,)),
    "forward hook": Row(hook_into("register_forward_hook"), (was_called,)),
    "forward pre-hook": Row(hook_into("register_forward_pre_hook"), (was_called,)),
    "backward hook": Row(hook_into("register_full_backward_hook"), (was_called,)),
    "global forward hook": Row(hook_globally(MODULES.register_module_forward_hook, output_layer), (was_called,)),
    "global forward pre-hook": Row(hook_globally(MODULES.register_module_forward_pre_hook, output_layer), (was_called,)),
    "global backward hook": Row(hook_globally(MODULES.register_module_full_backward_hook, output_layer), (was_called,)),
    "global optimizer pre-hook": Row(hook_globally(register_optimizer_step_pre_hook, actor_optimizer), (was_called,)),
    "global optimizer post-hook": Row(hook_globally(register_optimizer_step_post_hook, actor_optimizer), (was_called,)),
    "hooks of the optimizer": Row(hook_optimizer, (was_called,)),
    "step of the optimizer patched": Row(patch_optimizer, (was_called, stays(is_actor)), on_policy=False),
    # What is trained, and what is not.
    "optimizer replaced": Row(replace_optimizer, (was_called,)),
    "output layer and optimizer replaced": Row(replace_layer_and_optimizer, (learns(output_layer),)),
    "a weight frozen": Row(freeze(is_first_actor_weight), (stays(is_first_actor_weight),)),
    "actor frozen": Row(freeze(is_actor), (stays(is_actor),)),
    "critic frozen": Row(freeze(is_critic), (stays(is_critic),), on_policy=True),
    "head of the critic replaced": Row(replace_value_layer, (is_followed,), on_policy=False, options={"tau": 1.0}),
    "head of the critic assigned": Row(assign_value_layer, (is_followed,), on_policy=False, options={"tau": 1.0}),
    "value layer replaced": Row(replace_value_layer, (values_are_constant,), on_policy=True),
    "value layer assigned": Row(assign_value_layer, (values_are_constant,), on_policy=True),
    # The world around the model.
    "step_wait of the class patched": Row(count_steps_of_the_class, (counted_every_step,)),
    "environments pickled": Row(pickle_environments, (copy_steps,)),
    "default device": Row(default_to_meta, (stays_on_cpu,), at="start"),
}


@pytest.mark.filterwarnings("ignore:Full backward hook is firing", "ignore:For backward hooks to be called")
@pytest.mark.parametrize("name", TABLE)
def test_interventions(spec: Spec, name: str) -> None:
    row = TABLE[name]
    if row.on_policy is not None and row.on_policy != spec.on_policy:
        pytest.skip("it has no such part")
    logs, models = [], []
    for path in (nullcontext, fast.disabled):
        with path():
            models.append(spec.make(spec.envs(N_ENVS), **{**QUIET.get(spec.key, {}), **row.options}))
            logs.append(trained(models[-1], row))
    assert logs[0].hits == logs[1].hits
    assert_equal(*models)
    if row.peer:
        trained(spec.make_peer(spec.envs(N_ENVS), **row.options), row)


def assert_equal(model: Any, reference: Any) -> None:
    """
    :param model: one
    :param reference: another, with the same parameters up to rounding: of their size, or of one step of the optimizers
    """
    expected = dict(reference.policy.named_parameters())
    for name, parameter in model.policy.named_parameters():
        size = expected[name].detach().square().mean().sqrt().item()
        assert th.allclose(parameter, expected[name], rtol=1e-3, atol=1e-3 * size + 2e-5), name


def test_the_fast_path_is_taken_where_nothing_is_changed(spec: Spec) -> None:
    """Otherwise the comparisons here would compare the reference with itself."""
    model = spec.make().learn(60)
    assert model._fast_path() is not None
    with fast.disabled():
        assert model._fast_path() is None
    layer_of(output_layer(model)).register_forward_hook(lambda *_: None)
    assert model._fast_path() is None


# ------------------------------------------------------------------------------------------------------------- subclasses


class ConstantValues(ActorCriticPolicy):
    """Its values are what ``forward`` says."""

    def forward(self, obs: Any, deterministic: bool = False) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        :param obs: observations
        :param deterministic: as usual
        :return: actions, values that are all the same, log-probabilities
        """
        actions, values, log_prob = super().forward(obs, deterministic)
        return actions, th.full_like(values, VALUE), log_prob


@pytest.mark.parametrize("path", [nullcontext, fast.disabled], ids=["fast", "reference"])
@pytest.mark.parametrize("key", [key for key, spec in SPECS.items() if spec.on_policy])
def test_a_policy_that_overrides_forward_alone(key: str, path: Any) -> None:
    spec = SPECS[key]
    for make in (spec.make, spec.make_peer):
        with path():
            model = make(spec.envs(N_ENVS), policy=ConstantValues).learn(N_ENVS * 6)
        values_are_constant(model, Log())


def test_a_subclass_that_overrides_a_step_of_the_update(spec: Spec) -> None:
    """Each method that the fast path replaces, one at a time, is called as often as without the fast path."""
    calls: dict[str, list[int]] = {name: [] for name in spec.algorithm._fast_path_class.replaces}
    for name, counts in calls.items():
        for path in (nullcontext, fast.disabled):
            counts.append(0)

            def override(self: Any, *args: Any, _name: str = name, _counts: list[int] = counts, **kwargs: Any) -> Any:
                _counts[-1] += 1
                return getattr(spec.algorithm, _name)(self, *args, **kwargs)

            with path():
                spec.make(cls=type("Own", (spec.algorithm,), {name: override})).learn(40)
    assert all(counts[0] == counts[1] for counts in calls.values()), calls
    assert any(counts[0] for counts in calls.values())


@pytest.mark.parametrize("path", [nullcontext, fast.disabled], ids=["fast", "reference"])
def test_an_actor_loss_of_ones_own(path: Any) -> None:
    calls = []

    class Own(SVG0):
        def _actor_loss(self, *args: Any, **kwargs: Any) -> th.Tensor:
            calls.append(1)
            return super()._actor_loss(*args, **kwargs) * 0

    with path():
        model = SPECS["svg0"].make(cls=Own)
        before = copy.deepcopy(model.actor.state_dict())
        model.learn(60)
    assert len(calls) == model._n_updates > 0
    assert all(th.equal(value, before[name]) for name, value in model.actor.state_dict().items())


def test_the_optimal_baseline_with_frozen_standard_deviations() -> None:
    spec, models = SPECS["vpg"], []
    for path in (nullcontext, fast.disabled):
        with path():
            model = spec.make(spec.envs(N_ENVS, action="box"), **spec.variants["optimal"])
            model.policy.log_std.requires_grad_(False)
            models.append(model.learn(60))
        assert isinstance(model, VPG)
        assert (model.policy.log_std == 0).all()
    assert_equal(*models)


@pytest.mark.slow
def test_the_environment_variable_switches_the_fast_path_off() -> None:
    code = "import conftest\nfrom conformance.specs import SPECS\n"
    code += "for spec in SPECS.values():\n    print(spec.make().learn(40)._fast_path())\n"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "SB3_PG_FAST": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["None"] * len(SPECS)
