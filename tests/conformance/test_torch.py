"""All networks are ordinary PyTorch modules: they can be traced, transformed, compiled, and called with empty batches."""

import inspect
from typing import Any

import numpy as np
import pytest
import torch as th
from conformance.specs import Spec
from conformance.test_models import samples_of
from model_checks import check_training
from torch import nn

# torch.func emits the first warning, too. The second is caused by argument checks in torch's distributions.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")


class Exportable(nn.Module):
    """
    The deterministic policy, as SB3's export guide wraps it.

    :param policy: policy of any algorithm
    """

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, observation: Any) -> th.Tensor:
        """
        :param observation: batch of observations
        :return: actions, not scaled to the bounds of the action space
        """
        actions: th.Tensor = self.policy._predict(observation, deterministic=True)
        return actions


def observations(model: Any, n: int) -> Any:
    """
    :param model: model of any algorithm
    :param n: number of observations
    :return: the same random observation n times, as tensors
    """
    drawn = samples_of(model.observation_space, 1)
    repeat = {key: value.repeat(n, 0) for key, value in drawn.items()} if isinstance(drawn, dict) else drawn.repeat(n, 0)
    return model.policy.obs_to_tensor(repeat)[0]


def networks(model: Any) -> dict[str, tuple[nn.Module, tuple[Any, ...]]]:
    """
    :param model: model of any algorithm
    :return: name -> module and arguments of each network, for batches of three
    """
    obs = observations(model, 3)
    if hasattr(model, "actor"):
        actions = th.full((3, *model.action_space.shape), 0.1)
        is_random = "deterministic" in inspect.signature(model.actor.forward).parameters
        return {"actor": (model.actor, (obs, True) if is_random else (obs,)), "critic": (model.critic, (obs, actions))}
    return {"policy": (model.policy, (obs, True))}


def value_of(output: Any) -> th.Tensor:
    """
    :param output: output of a network
    :return: sum of all its elements
    """
    parts = output if isinstance(output, tuple) else (output,)
    return th.stack([part.sum() for part in parts if part.is_floating_point()]).sum()


def test_a_policy_can_be_traced_as_in_the_export_guide(spec: Spec) -> None:
    model = spec.make(spec.envs(action="box")).learn(40)
    policy = model.policy.to("cpu").eval()
    traced: Any = th.jit.trace(Exportable(policy), (observations(model, 1),))  # type: ignore[no-untyped-call]  # torch
    frozen = th.jit.freeze(traced.eval())
    for n in (1, 4):
        obs = observations(model, n)
        with th.no_grad():
            expected = policy._predict(obs, deterministic=True)
            assert all(th.allclose(each(obs), expected, atol=1e-6) for each in (traced, frozen))


def test_functional_derivatives_are_those_of_autograd(spec: Spec) -> None:
    model = spec.make(spec.envs(action="box"), policy_kwargs={"activation_fn": nn.Tanh})
    for module, arguments in networks(model).values():
        parameters = {name: p.detach() for name, p in module.named_parameters()}

        def function(parameters: Any, module: nn.Module = module, arguments: Any = arguments) -> th.Tensor:
            return value_of(th.func.functional_call(module, parameters, arguments))

        names = [name for name, p in module.named_parameters() if p.requires_grad]
        expected = th.autograd.grad(
            value_of(module(*arguments)), [module.get_parameter(name) for name in names], allow_unused=True
        )
        by_function, by_jacobian = th.func.grad(function)(parameters), th.func.jacrev(function)(parameters)
        assert any(gradient is not None and gradient.abs().max() > 0 for gradient in expected)
        for name, gradient in zip(names, expected, strict=True):
            reference = th.zeros_like(by_function[name]) if gradient is None else gradient
            assert th.allclose(by_function[name], reference, rtol=1e-4, atol=1e-6), name
            assert th.allclose(by_jacobian[name], reference, rtol=1e-4, atol=1e-6), name
        last = names[-2]
        hessian = th.func.hessian(lambda p: function({**parameters, last: p}))(parameters[last])  # noqa: B023 # called at once
        assert hessian.shape == (*parameters[last].shape, *parameters[last].shape)
        ensemble = {name: th.stack([p, 2 * p]) for name, p in parameters.items()}
        each = th.func.vmap(function, randomness="different")(ensemble)
        doubled = function({name: 2 * p for name, p in parameters.items()})
        assert th.allclose(each, th.stack([function(parameters), doubled]), rtol=1e-4, atol=1e-5)


def test_an_empty_batch(spec: Spec) -> None:
    model = spec.make(spec.envs(action="box"))
    for module, arguments in networks(model).values():
        empty = [
            {key: value[:0] for key, value in one.items()} if isinstance(one, dict) else one[:0] if th.is_tensor(one) else one
            for one in arguments
        ]
        value = value_of(module(*empty))
        assert value.item() == 0
        gradients = th.autograd.grad(value, list(module.parameters()), allow_unused=True)
        assert all(gradient is None or gradient.abs().max() == 0 for gradient in gradients)
    obs = observations(model, 1)
    nothing = {key: value[:0].numpy() for key, value in obs.items()} if isinstance(obs, dict) else obs[:0].numpy()
    assert model.predict(nothing, deterministic=True)[0].shape == (0, *model.action_space.shape)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch's compiler
def test_a_compiled_policy_learns(spec: Spec) -> None:
    model = spec.make()
    try:
        model.policy = th.compile(model.policy, backend="eager")
        check_training(model, 60)
        assert np.isfinite(model.predict(model.env.reset(), deterministic=True)[0]).all()
    finally:
        # The compiler switches this off for the whole process.
        th.distributions.Distribution.set_default_validate_args(True)
