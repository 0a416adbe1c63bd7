"""What autograd's graph of a result is made of."""

import torch as th


def is_fused(output: th.Tensor) -> bool:
    """
    :param output: result, with gradient
    :return: whether an operation of ``sb3_pg.fast.fused_mlp`` took part
    """
    names = set()
    nodes = [output.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is not None:
            names.add(node.name())
            nodes.extend(following for following, _ in node.next_functions)
    return "_StackBackward" in names
