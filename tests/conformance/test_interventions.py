"""
Changes by users to a model take effect during training, as in Stable-Baselines3, with and without the fast path.

Each row of the table changes a model, before training or in a callback during training. The effect is checked with the fast
path, without it, and with SB3's class; the trained parameters with and without the fast path are equal.
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

# Steps of two environments: there are updates before and after the change, which is not at the end of a rollout.
N_ENVS, CHANGE_AT, N_STEPS = 2, 13, 26
# Without noise, the environments get the actions of the policy.
QUIET: dict[str, Options] = {"her_ddpg": {"random_eps": 0.0, "action_noise_std": 0.0}}
LARGE, VALUE = 40.0, 2.0


@dataclass
class Log:
    """
    Record of one training run.

    :param hits: number of calls counted by the change
    :param before: parameters directly after the change
    :param actions: actions after the change
    :param undo: reverts global changes
    :param notes: further data of the change, for the check
    """

    hits: int = 0
    before: dict[str, th.Tensor] = field(default_factory=dict)
    actions: list[Any] = field(default_factory=list)
    undo: ExitStack = field(default_factory=ExitStack)
    notes: dict[str, Any] = field(default_factory=dict)

    def count(self, *_: Any, **__: Any) -> None:
        """Count a call. As a hook, it has no other effect."""
        self.hits += 1


Change = Callable[[Any, Log], None]


@dataclass(frozen=True)
class Row:
    """
    A row of the table.

    :param change: change of a model
    :param checks: checks after training
    :param at: ``"start"``: change before training; ``"step"``: change at a step during training
    :param on_policy: True: only for on-policy algorithms; False: only for off-policy algorithms; ``None``: for all
    :param options: arguments of the models
    :param peer: whether the change has the same effect on SB3's class
    """

    change: Change
    checks: tuple[Change, ...]
    at: str = "step"
    on_policy: bool | None = None
    options: Options = field(default_factory=dict)
    peer: bool = True


class Intervene(BaseCallback):
    """
    Applies the change, and records subsequent actions.

    :param row: row of the table
    :param log: record of the training run, to be filled
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
    """Apply a change, and record the parameters after it."""
    row.change(model, log)
    log.before = {name: value.detach().clone() for name, value in model.policy.named_parameters()}


def trained(model: Any, row: Row) -> Log:
    """
    Train a model with a change, and run the checks.

    :param model: model to train
    :param row: row of the table
    :return: record of the training run
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
    :param model: model of any algorithm
    :return: module that contains the last linear layer of the actor, and the layer's name there
    """
    if hasattr(model.policy, "action_net"):
        return model.policy, "action_net"
    mu = model.actor.mu
    return (mu, last_linear(mu)) if isinstance(mu, nn.Sequential) else (model.actor, "mu")


def value_layer(model: Any) -> tuple[nn.Module, str]:
    """
    :param model: model of any algorithm
    :return: module that contains the last linear layer of the (first) critic, and the layer's name there
    """
    if hasattr(model.policy, "value_net"):
        return model.policy, "value_net"
    return model.critic.qf0, last_linear(model.critic.qf0)


def last_linear(network: nn.Module) -> str:
    """
    :param network: sequence of layers
    :return: name of the last linear layer
    """
    return [name for name, layer in network.named_children() if isinstance(layer, nn.Linear)][-1]


def layer_of(place: tuple[nn.Module, str]) -> Any:
    """
    :param place: module or optimizer owner, and name of an attribute
    :return: value of the attribute
    """
    return getattr(*place)


def constant_layer(layer: nn.Linear, value: float = LARGE) -> nn.Linear:
    """
    :param layer: linear layer
    :param value: output
    :return: a layer of the same shape with constant output
    """
    constant = copy.deepcopy(layer)
    constant.weight.data.zero_()
    constant.bias.data.fill_(value)
    return constant


def largest(model: Any) -> nn.Linear:
    """
    :param model: model of any algorithm
    :return: output layer with which the actor always takes the maximum action, or the first discrete one
    """
    layer = constant_layer(layer_of(output_layer(model)))
    if isinstance(model.action_space, spaces.Discrete):
        layer.bias.data[1:] *= -1
    return layer


def is_critic(name: str) -> bool:
    """
    :param name: name of a parameter
    :return: whether it belongs to the critic
    """
    return name.startswith("critic.") or "value" in name


def is_actor(name: str) -> bool:
    """
    :param name: name of a parameter
    :return: whether it belongs to the actor
    """
    return not is_critic(name) and "_target." not in name


def actor_optimizer(model: Any) -> tuple[Any, str]:
    """
    :param model: model of any algorithm
    :return: object that has the optimizer of the actor, and the attribute's name
    """
    return (model.actor if hasattr(model, "actor") else model.policy), "optimizer"


# ---------------------------------------------------------------------------------------------------------------- checks


def acts(model: Any, log: Log) -> None:
    """Check that all actions after the change are those of :func:`largest`."""
    expected = 0 if isinstance(model.action_space, spaces.Discrete) else model.action_space.high
    assert len(log.actions) >= N_ENVS * (N_STEPS - CHANGE_AT)
    assert np.allclose(log.actions, expected, atol=1e-4)


def was_called(_: Any, log: Log) -> None:
    """Check that the change counted a call."""
    assert log.hits > 0


def moved(model: Any, log: Log, which: Callable[[str], bool]) -> bool:
    """
    :param model: model after training
    :param log: record of the training run
    :param which: selects parameters by name
    :return: whether any of these parameters changed after the change of the model
    """
    names = [name for name, _ in model.policy.named_parameters() if which(name)]
    assert names
    parameters = dict(model.policy.named_parameters())
    return any(not th.equal(parameters[name], log.before[name]) for name in names)


def stays(which: Callable[[str], bool]) -> Change:
    """
    :param which: selects parameters by name
    :return: check that these parameters did not change in training, and that others did
    """

    def check(model: Any, log: Log) -> None:
        assert not moved(model, log, which)
        assert moved(model, log, lambda name: not which(name) and "_target." not in name)

    return check


def learns(place: Callable[[Any], tuple[nn.Module, str]]) -> Change:
    """
    :param place: place of a layer
    :return: check that this layer changed in training
    """

    def check(model: Any, log: Log) -> None:
        own = {id(p) for p in layer_of(place(model)).parameters()}
        names = {name for name, p in model.policy.named_parameters() if id(p) in own}
        assert moved(model, log, lambda name: name in names)

    return check


def targets_are_averaged(model: Any, _: Log) -> None:
    """Check that the target critic, with ``tau=1``, equals the critic."""
    critic, target = model.critic.state_dict(), model.critic_target.state_dict()
    assert all(th.equal(value, target[name]) for name, value in critic.items())


def values_are_constant(model: Any, _: Log) -> None:
    """Check that the values of the last rollout are those of the changed critic."""
    assert np.allclose(model.rollout_buffer.values, VALUE, atol=1e-4)


# --------------------------------------------------------------------------------------------------------------- changes


def replace_layer(model: Any, _: Log) -> None:
    """Replace the output layer."""
    setattr(*output_layer(model), largest(model))


def assign_state(model: Any, _: Log) -> None:
    """Replace all tensors."""
    other = copy.deepcopy(model.policy)
    largest_layer = largest(model)
    original = layer_of(output_layer(model))
    state = {name: value.clone() for name, value in other.state_dict().items()}
    prefix = next(name for name, module in model.policy.named_modules() if module is original)
    state |= {f"{prefix}.{name}": value.detach().clone() for name, value in largest_layer.state_dict().items()}
    model.policy.load_state_dict(state, assign=True)


def write_vector(model: Any, _: Log) -> None:
    """Make all parameters views of one vector."""
    layer, other = layer_of(output_layer(model)), largest(model)
    values = {id(layer.weight): other.weight, id(layer.bias): other.bias}
    vector = parameters_to_vector([values.get(id(p), p) for p in model.policy.parameters()]).detach().clone()
    vector_to_parameters(vector, model.policy.parameters())


def write_data(model: Any, _: Log) -> None:
    """Replace the data of two parameters."""
    layer, other = layer_of(output_layer(model)), largest(model)
    layer.weight.data, layer.bias.data = other.weight.data, other.bias.data


def write_in_place(model: Any, _: Log) -> None:
    """Overwrite two parameters."""
    layer, other = layer_of(output_layer(model)), largest(model)
    with th.no_grad():
        layer.weight.copy_(other.weight)
        layer.bias.copy_(other.bias)


def set_parameters(model: Any, _: Log) -> None:
    """Set modified results of ``get_parameters``."""
    state = copy.deepcopy(model.get_parameters())
    write_in_place(model, _)
    state["policy"] = copy.deepcopy(model.policy.state_dict())
    model.set_parameters(state)


def patch_forward(model: Any, log: Log) -> None:
    """Patch ``forward`` of the output layer."""
    layer, other = layer_of(output_layer(model)), largest(model)

    def forward(features: th.Tensor) -> th.Tensor:
        log.count()
        output: th.Tensor = other(features)
        return output

    layer.forward = forward


def replace_output(model: Any, log: Log) -> None:
    """Register a hook that replaces the output of the output layer."""
    other = largest(model)

    def hook(_: nn.Module, inputs: Any, __: Any) -> Any:
        log.count()
        return other(*inputs)

    layer_of(output_layer(model)).register_forward_hook(hook)


class Zero(nn.Module):
    """A parametrisation."""

    def forward(self, weight: th.Tensor) -> th.Tensor:
        """Return zeros."""
        return weight * 0


def parametrise(model: Any, _: Log) -> None:
    """Parametrise the weight of the output layer."""
    layer = layer_of(output_layer(model))
    layer.bias.data.copy_(largest(model).bias)
    parametrize.register_parametrization(layer, "weight", Zero())
    if hasattr(model, "actor_target"):  # averaged parameter by parameter
        parametrize.register_parametrization(
            getattr(model.actor_target.mu, last_linear(model.actor_target.mu)), "weight", Zero()
        )


def patch_extractor(model: Any, log: Log) -> None:
    """Patch ``forward`` of the actor's hidden layers."""
    original = model.policy.mlp_extractor.forward_actor

    def forward_actor(features: th.Tensor) -> th.Tensor:
        log.count()
        output: th.Tensor = original(features) * 0
        return output

    model.policy.mlp_extractor.forward_actor = forward_actor
    layer_of(output_layer(model)).bias.data.copy_(largest(model).bias)


def zero_gradient(model: Any, log: Log) -> None:
    """Register a hook that zeroes the gradient of a weight."""

    def hook(gradient: th.Tensor) -> th.Tensor:
        log.count()
        return gradient * 0

    layer_of(output_layer(model)).weight.register_hook(hook)


def hook_into(register: str, part: str = "") -> Change:
    """
    :param register: name of the method that registers a hook
    :param part: attribute of the layer that has this method; the layer itself by default
    :return: change that counts the calls of the hook
    """

    def hook(model: Any, log: Log) -> None:
        layer = layer_of(output_layer(model))
        getattr(getattr(layer, part) if part else layer, register)(log.count)

    return hook


def hook_globally(register: Callable[[Any], Any], place: Callable[[Any], tuple[Any, str]]) -> Change:
    """
    :param register: function that registers a hook for all modules, or all optimizers
    :param place: place of the module or optimizer whose calls are counted
    :return: change that counts the calls of the hook
    """

    def hook(model: Any, log: Log) -> None:
        def count(caller: object, *_: Any) -> None:
            log.hits += caller is layer_of(place(model))

        log.undo.callback(register(count).remove)

    return hook


def hook_optimizer(model: Any, log: Log) -> None:
    """Register hooks of the optimizer."""
    optimizer = getattr(*actor_optimizer(model))
    optimizer.register_step_pre_hook(log.count)
    optimizer.register_step_post_hook(log.count)


def patch_optimizer(model: Any, log: Log) -> None:
    """Replace ``step`` of the optimizer by a method that only counts."""
    getattr(*actor_optimizer(model)).step = log.count


def replace_optimizer(model: Any, log: Log) -> None:
    """Replace the optimizer."""
    parameters = [p for group in getattr(*actor_optimizer(model)).param_groups for p in group["params"]]
    optimizer = th.optim.SGD(parameters, lr=0.1, momentum=0.5)
    optimizer.register_step_post_hook(log.count)
    setattr(*actor_optimizer(model), optimizer)


def replace_layer_and_optimizer(model: Any, _: Log) -> None:
    """Replace the output layer by a new one, and the optimizer by one that trains it, as in fine-tuning."""
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
    """Replace the output layer of the critic."""
    place = value_layer(model)
    setattr(*place, constant_layer(layer_of(place), VALUE))


def assign_value_layer(model: Any, _: Log) -> None:
    """Replace the tensors of the critic's output layer."""
    layer = layer_of(value_layer(model))
    layer.load_state_dict(constant_layer(layer, VALUE).state_dict(), assign=True)


def freeze(which: Callable[[str], bool]) -> Change:
    """
    :param which: selects parameters by name
    :return: change that freezes these parameters
    """

    def change(model: Any, _: Log) -> None:
        for name, parameter in model.policy.named_parameters():
            if which(name):
                parameter.requires_grad_(False)

    return change


def is_first_actor_weight(name: str) -> bool:
    """
    :param name: name of a parameter
    :return: whether it is a weight of the first layer of the actor
    """
    return is_actor(name) and name.endswith("0.weight")


def replace_activation(model: Any, log: Log) -> None:
    """Replace the first activation."""
    network = model.policy.mlp_extractor.policy_net if hasattr(model.policy, "mlp_extractor") else None
    if network is None:
        network = model.actor.mu if isinstance(model.actor.mu, nn.Sequential) else model.actor.latent_pi
    other = nn.Softsign()
    other.register_forward_hook(log.count)
    network[1] = other


def count_steps_of_the_class(_: Any, log: Log) -> None:
    """Patch ``step_wait`` of the class."""
    original = DummyVecEnv.step_wait

    def step_wait(self: Any) -> Any:
        log.count()
        return original(self)

    patch = pytest.MonkeyPatch()
    patch.setattr(DummyVecEnv, "step_wait", step_wait)
    log.undo.callback(patch.undo)


def counted_every_step(_: Any, log: Log) -> None:
    """Check that every step was counted."""
    assert log.hits == len(log.actions) // N_ENVS


def pickle_environments(model: Any, log: Log) -> None:
    """Copy the environments by pickling."""
    log.notes["copy"] = cloudpickle.loads(cloudpickle.dumps(model.env))


def copy_steps(model: Any, log: Log) -> None:
    """Check that the copied environments have the same class, and can be stepped."""
    assert type(log.notes["copy"]) is type(model.env)
    log.notes["copy"].reset()
    log.notes["copy"].step(np.stack([model.action_space.sample()] * N_ENVS))


def default_to_meta(_: Any, log: Log) -> None:
    """Set another default device."""
    th.set_default_device("meta")
    log.undo.callback(th.set_default_device, None)


def stays_on_cpu(model: Any, _: Log) -> None:
    """Check that all parameters are on the CPU."""
    assert {p.device.type for p in model.policy.parameters()} == {"cpu"}


MODULES = nn.modules.module
OUTPUT_WEIGHTS = {"action_net.weight", "actor.mu.weight", "actor.mu.2.weight"}
TABLE: dict[str, Row] = {
    # Replaced or overwritten weights take effect at the next step.
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
    # Trained and frozen parameters.
    "optimizer replaced": Row(replace_optimizer, (was_called,)),
    "output layer and optimizer replaced": Row(replace_layer_and_optimizer, (learns(output_layer),)),
    "a weight frozen": Row(freeze(is_first_actor_weight), (stays(is_first_actor_weight),)),
    "actor frozen": Row(freeze(is_actor), (stays(is_actor),)),
    "critic frozen": Row(freeze(is_critic), (stays(is_critic),), on_policy=True),
    "head of the critic replaced": Row(replace_value_layer, (targets_are_averaged,), on_policy=False, options={"tau": 1.0}),
    "head of the critic assigned": Row(assign_value_layer, (targets_are_averaged,), on_policy=False, options={"tau": 1.0}),
    "value layer replaced": Row(replace_value_layer, (values_are_constant,), on_policy=True),
    "value layer assigned": Row(assign_value_layer, (values_are_constant,), on_policy=True),
    # Environments and global state.
    "step_wait of the class patched": Row(count_steps_of_the_class, (counted_every_step,)),
    "environments pickled": Row(pickle_environments, (copy_steps,)),
    "default device": Row(default_to_meta, (stays_on_cpu,), at="start"),
}


@pytest.mark.filterwarnings("ignore:Full backward hook is firing", "ignore:For backward hooks to be called")
@pytest.mark.parametrize("name", TABLE)
def test_interventions(spec: Spec, name: str) -> None:
    row = TABLE[name]
    if row.on_policy is not None and row.on_policy != spec.on_policy:
        pytest.skip("the algorithm has no such part")
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
    Compare parameters, up to rounding errors relative to their size or to one optimizer step.

    :param model: model trained with the fast path
    :param reference: model trained without the fast path
    """
    expected = dict(reference.policy.named_parameters())
    for name, parameter in model.policy.named_parameters():
        size = expected[name].detach().square().mean().sqrt().item()
        assert th.allclose(parameter, expected[name], rtol=1e-3, atol=1e-3 * size + 2e-5), name


def test_the_fast_path_is_used_for_unmodified_models(spec: Spec) -> None:
    """Otherwise the tests of this module would compare the reference with itself."""
    model = spec.make().learn(60)
    assert model._fast_path() is not None
    with fast.disabled():
        assert model._fast_path() is None
    layer_of(output_layer(model)).register_forward_hook(lambda *_: None)
    assert model._fast_path() is None


# ------------------------------------------------------------------------------------------------------------- subclasses


class ConstantValues(ActorCriticPolicy):
    """Overrides the values in ``forward``."""

    def forward(self, obs: Any, deterministic: bool = False) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Return constant values."""
        actions, values, log_prob = super().forward(obs, deterministic)
        return actions, th.full_like(values, VALUE), log_prob


@pytest.mark.parametrize("path", [nullcontext, fast.disabled], ids=["fast", "reference"])
@pytest.mark.parametrize("key", [key for key, spec in SPECS.items() if spec.on_policy])
def test_a_policy_that_overrides_only_forward(key: str, path: Any) -> None:
    spec = SPECS[key]
    for make in (spec.make, spec.make_peer):
        with path():
            model = make(spec.envs(N_ENVS), policy=ConstantValues).learn(N_ENVS * 6)
        values_are_constant(model, Log())


def test_a_subclass_that_overrides_a_step_of_the_update(spec: Spec) -> None:
    """Each method that the fast path replaces, overridden one at a time, is called as often as without the fast path."""
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
def test_an_overridden_actor_loss(path: Any) -> None:
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
def test_the_environment_variable_disables_the_fast_path() -> None:
    code = "import conftest\nfrom conformance.specs import SPECS\n"
    code += "for spec in SPECS.values():\n    print(spec.make().learn(40)._fast_path())\n"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "SB3_PG_FAST": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["None"] * len(SPECS)
