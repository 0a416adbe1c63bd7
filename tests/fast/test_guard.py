"""The guard detects every change to a network; what it cannot determine counts as a change."""

import copy
import functools
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_pg import NStepA2C, fast
from sb3_pg.fast import torch_private
from sb3_pg.fast.guard import Fingerprint, Originals


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Sequential(nn.Linear(4, 2)))


def forward_of(module: nn.Module) -> Callable[..., Any]:
    return module.forward


def patch_class(module: nn.Module) -> None:
    module[0].__class__ = type("Other", (nn.Linear,), {})  # type: ignore[index]  # a Sequential


CHANGES: dict[str, Callable[[Any], object]] = {
    "forward hook": lambda m: m[2][0].register_forward_hook(lambda *_: None),
    "forward pre-hook": lambda m: m[0].register_forward_pre_hook(lambda *_: None),
    "backward hook": lambda m: m[0].register_full_backward_hook(lambda *_: None),
    "backward pre-hook": lambda m: m[0].register_full_backward_pre_hook(lambda *_: None),
    "tensor hook": lambda m: m[0].weight.register_hook(lambda g: g),
    "post-accumulate-grad hook": lambda m: m[0].bias.register_post_accumulate_grad_hook(lambda _: None),
    "patched method": lambda m: setattr(m[0], "forward", lambda x: x),
    "replaced module": lambda m: m.__setitem__(1, nn.ReLU()),
    "module of another class": patch_class,
    "replaced parameter": lambda m: setattr(m[0], "weight", nn.Parameter(th.zeros(4, 3))),
    "assigned state": lambda m: m.load_state_dict(network().state_dict(), assign=True),
    "moved memory": lambda m: nn.utils.vector_to_parameters(th.zeros(26), m.parameters()),
    "frozen parameter": lambda m: m[0].bias.requires_grad_(False),
    "further module": lambda m: m.append(nn.ReLU()),
    "child of a leaf module": lambda m: m[1].add_module("child", nn.ReLU()),
    "removed module": lambda m: m.pop(-1),
    "removed bias": lambda m: setattr(m[0], "bias", None),
    "parametrisation": lambda m: nn.utils.parametrizations.weight_norm(m[0]),
    "replaced attribute": lambda m: setattr(m, "note", "b"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changes_are_detected(change: Callable[[nn.Module], object]) -> None:
    module = network()
    module.note = "a"  # type: ignore[assignment]  # an attribute such as the distribution of a policy
    fingerprint = Fingerprint(module)
    assert fingerprint.is_plain
    assert fingerprint.matches()
    change(module)
    assert not fingerprint.matches()


@pytest.mark.parametrize("name", [name for name in CHANGES if "hook" in name or "patched" in name])
def test_hooks_and_patches_are_detected_from_the_start(name: str) -> None:
    module = network()
    CHANGES[name](module)
    fingerprint = Fingerprint(module)
    assert not fingerprint.is_plain
    assert fingerprint.matches()


def test_ordinary_use_is_not_a_change() -> None:
    module = network()
    fingerprint = Fingerprint(module)
    module.eval()
    module.load_state_dict(network().state_dict())
    module(th.zeros(1, 3)).sum().backward()
    th.optim.Adam(module.parameters()).step()
    assert fingerprint.matches()


def test_a_removed_hook_is_a_change() -> None:
    module = network()
    handle = module[0].register_forward_hook(lambda *_: None)
    fingerprint = Fingerprint(module)
    handle.remove()
    assert not fingerprint.matches()
    assert Fingerprint(module).is_plain


def default_device() -> Iterator[None]:
    th.set_default_device("meta")
    yield
    th.set_default_device(None)


def global_hook() -> Iterator[None]:
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    yield
    handle.remove()


def autocast() -> Iterator[None]:
    with th.autocast("cpu", dtype=th.bfloat16):
        yield


@pytest.mark.parametrize("state", [default_device, global_hook, autocast])
def test_global_state_is_detected(state: Callable[[], Iterator[None]]) -> None:
    module = network()
    fingerprint = Fingerprint(module)
    for _ in state():
        assert not fingerprint.matches()
        assert not Fingerprint(module).is_plain
    assert fingerprint.matches()


def test_patched_classes_are_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    originals = Originals([(nn.Linear, "forward"), (ActorCriticPolicy, "forward")])
    assert originals.unchanged()
    original = forward_of(nn.Linear)  # type: ignore[arg-type]  # of the class

    @functools.wraps(original)
    def wrapped(*args: Any) -> Any:
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(nn.Linear, "forward", wrapped)
        assert not originals.unchanged()
    assert originals.unchanged()


# ----------------------------------------------------------------------------------------------------------- selection


def model(**kwargs: Any) -> NStepA2C:
    return NStepA2C("MlpPolicy", "CartPole-v1", seed=0, device="cpu", **kwargs)


def test_the_selection_is_kept_while_nothing_changes() -> None:
    a2c = model()
    path = a2c._fast_path()
    assert path is not None
    a2c.learn(20)
    assert a2c._fast_path() is path
    a2c.policy = copy.deepcopy(a2c.policy)
    assert a2c._fast_path() not in (None, path)


def test_disabled_applies_to_its_block_and_thread() -> None:
    a2c, seen = model(), []
    with fast.disabled():
        assert a2c._fast_path() is None
        thread = threading.Thread(target=lambda: seen.append(a2c._fast_path()))
        thread.start()
        thread.join()
    assert a2c._fast_path() is not None
    assert seen != [None]


def test_copies_select_for_themselves() -> None:
    """A fast path shares memory with the networks that it was built for."""
    a2c = model()
    a2c._fast_path()
    other = copy.deepcopy(a2c.policy)
    twin = copy.copy(a2c)
    twin.policy = other
    assert twin._fast_path()._algorithm is twin
    assert a2c._fast_path()._algorithm is a2c
    assert copy.deepcopy(a2c._selection) is None


def test_subclasses_that_override_a_step_use_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain(NStepA2C):
        """Overrides no step."""

    class Own(NStepA2C):
        """Overrides one."""

        def policy_gradient(self, *args: Any) -> Any:
            return super().policy_gradient(*args)

    options: Any = {"policy": "MlpPolicy", "env": "CartPole-v1", "device": "cpu"}
    assert Plain(**options)._fast_path() is not None
    assert Own(**options)._fast_path() is None
    a2c = model()
    with monkeypatch.context() as patch:
        patch.setattr(NStepA2C, "policy_gradient", Own.policy_gradient)
        assert a2c._fast_path() is None
    assert a2c._fast_path() is not None
    monkeypatch.setattr(a2c, "sample_actions", a2c.sample_actions)
    assert a2c._fast_path() is None


# --------------------------------------------------------------------------------------------- private functions of torch


@pytest.fixture
def fresh() -> Iterator[None]:
    """Clear the caches of look-ups in torch, before and after the test."""
    caches = [each for each in vars(torch_private).values() if hasattr(each, "cache_clear")]
    for each in caches:
        each.cache_clear()
    yield
    for each in caches:
        each.cache_clear()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (nn.modules.module, "_global_forward_hooks"),
        (nn.modules.module, "_global_backward_pre_hooks"),
        (th._C, "_len_torch_function_stack"),
    ],
)
@pytest.mark.usefixtures("fresh")
def test_a_missing_private_name_counts_as_a_change(module: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Fingerprint(network()).is_plain
    torch_private._look_up.cache_clear()
    monkeypatch.delattr(module, name)
    assert not Fingerprint(network()).is_plain


@pytest.mark.usefixtures("fresh")
def test_activations_have_a_public_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    gradient, results = th.randn(5, 3), {}
    outputs = {"tanh": th.randn(5, 3).tanh(), "relu": th.randn(5, 3).relu()}
    for private in (True, False):
        if not private:
            torch_private.activation_backward.cache_clear()
            monkeypatch.setattr(th.ops, "aten", object())
        for name, output in outputs.items():
            result = th.empty_like(gradient)
            torch_private.activation_backward(name)(gradient, output, result)
            results[name, private] = result
    for name, output in outputs.items():
        slope = 1 - output**2 if name == "tanh" else (output > 0).float()
        assert th.allclose(results[name, True], gradient * slope, atol=1e-6)
        assert th.allclose(results[name, False], gradient * slope, atol=1e-6)


@pytest.mark.parametrize("name", ["torch._fused_adam_", "torch.nn.modules.module._global_forward_hooks"])
def test_training_works_if_torch_lacks_a_private_name(name: str) -> None:
    """In a separate process, without the name from the start."""
    module, _, attribute = name.rpartition(".")
    code = f"""
import sys
import stable_baselines3, torch
kept = {name}
del {name}
import sb3_pg
import sb3_pg.fast.actor_critic, sb3_pg.svg0.svg0, sb3_pg.her_ddpg.her_ddpg
model = sb3_pg.NStepA2C("MlpPolicy", "CartPole-v1", device="cpu", seed=0)
# Torch itself needs some of them to train.
{module}.{attribute} = kept
print(model.learn(20).num_timesteps)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "20", done.stderr[-2000:]
