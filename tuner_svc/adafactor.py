"""Adafactor without relative step sizes, without momentum, without weight decay (Shazeer and Stern, 2018).

UniTune uses it with a constant learning rate. torch.optim.Adafactor is another algorithm: it always scales the step by
the parameter's own size. The results are those of transformers' Adafactor(scale_parameter=False, relative_step=False),
up to rounding.
"""

import weakref
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

DECAY_RATE = -0.8  # of 1 - step ** DECAY_RATE, the second moment's decay; section 7.2
GRADIENT_FLOOR = 1e-30  # added to squared gradients
CLIP_THRESHOLD = 1.0  # root mean square of an update before the learning rate; section 6
CACHED = 200_000  # values that a CPU processes together, so that they stay in its cache
TOGETHER_ON_A_GPU = 64_000_000  # values: every call costs there, but copies of all are as large as the model


class Adafactor:
    """Moves `parameters` in place by their gradients. After a step the gradients are None.

    A parameter with two or more axes keeps second moments only as means over its last axis (rows) and over its second
    last axis (columns). Other parameters keep all of them.
    """

    def __init__(self, parameters: list[Tensor], learning_rate: float) -> None:
        self._learning_rate = learning_rate
        self._parameters = list(parameters)
        # On the device, so that a captured step counts; in float64, so that the decay is exact in float32.
        self._steps = torch.zeros((), dtype=torch.float64, device=parameters[0].device)
        self._factored = [parameter for parameter in parameters if parameter.dim() >= 2]
        self._whole = [parameter for parameter in parameters if parameter.dim() < 2]
        self._moments = [torch.zeros_like(parameter, requires_grad=False) for parameter in self._whole]
        shapes = [_rows_first(parameter).shape for parameter in self._factored]
        self._rows = [
            parameter.new_zeros((shape[0], 1, *shape[2:]))
            for parameter, shape in zip(self._factored, shapes, strict=True)
        ]
        self._columns = [
            parameter.new_zeros((1, *shape[1:])) for parameter, shape in zip(self._factored, shapes, strict=True)
        ]
        self._groups = _groups(self._factored)
        self._early: list[slice] = []  # groups that move before `step`

    def step_early(self) -> None:
        """From now on a parameter that is a group of its own moves within the backward pass, as soon as its gradient is
        there, which is then dropped. So the gradients of large parameters are never all in memory. `step` moves the
        others. The bits are the same; but each step must have one backward pass alone."""
        self._early = self._alone()
        for group in self._early:
            moves = partial(_step_early, weakref.ref(self), group)
            self._factored[group.start].register_post_accumulate_grad_hook(moves)

    @property
    def late_bytes(self) -> int:
        """Of the gradients that wait for `step`, once large parameters move early."""
        early = sum(self._factored[group.start].nbytes for group in self._alone())
        return sum(parameter.nbytes for parameter in (*self._whole, *self._factored)) - early

    @property
    def group_bytes(self) -> int:
        """Of the largest group of parameters that are moved together."""
        return max((sum(each.nbytes for each in self._factored[group]) for group in self._groups), default=0)

    def state(self) -> dict[str, Tensor]:
        """The tensors that it changes besides the parameters, themselves, by name."""
        kept = {"rows": self._rows, "columns": self._columns, "moments": self._moments}
        return {"steps": self._steps} | {
            f"{name}.{index}": tensor for name, tensors in kept.items() for index, tensor in enumerate(tensors)
        }

    def moments(self) -> list[list[Tensor]]:
        """Of each parameter, for each of its axes the second moments' means over all other axes: a vector.

        They are what a tuning of another picture can begin with (`begin_at`), at next to no bytes. Of a parameter with
        up to two axes they say all that is known of it.
        """
        found = {
            id(parameter): [moments.clone()] for parameter, moments in zip(self._whole, self._moments, strict=True)
        }
        for parameter, rows, columns in zip(self._factored, self._rows, self._columns, strict=True):
            means = [_mean_along(columns if axis == 1 else rows, axis) for axis in range(rows.dim())]
            found[id(parameter)] = [*means[2:], *means[:2]]  # the last two axes are in front here
        return [found[id(parameter)] for parameter in self._parameters]

    @torch.no_grad()
    def begin_at(self, moments: Sequence[Sequence[Tensor]], steps: int) -> None:
        """Go on as if `steps` updates had left these second moments, as `moments` gives them. Of a parameter with more
        than two axes they become the product of their means."""
        of = {id(parameter): means for parameter, means in zip(self._parameters, moments, strict=True)}
        self._steps.fill_(steps)
        for parameter, kept in zip(self._whole, self._moments, strict=True):
            kept.copy_(of[id(parameter)][0].view_as(kept))
        for parameter, rows, columns in zip(self._factored, self._rows, self._columns, strict=True):
            means = of[id(parameter)]
            in_front = [*means[-2:], *means[:-2]]
            rows.copy_(_product(in_front, leaves_out=1))
            columns.copy_(_product(in_front, leaves_out=0))

    @torch.no_grad()
    def step(self) -> None:
        """One update. Every parameter must have a gradient. It never waits for a GPU, so it can be captured."""
        latest_weight = self._latest_weight()
        self._steps += 1
        if self._whole:
            self._step_whole(latest_weight)
        for group in self._groups:
            if group not in self._early:
                self._step_factored(latest_weight, group)
        for parameter in (*self._whole, *self._factored):
            parameter.grad = None

    def _alone(self) -> list[slice]:
        return [group for group in self._groups if group.stop - group.start == 1]

    def _latest_weight(self) -> Tensor:
        """Of the next step: 1 - decay, 0-dim."""
        return ((self._steps + 1) ** DECAY_RATE).float()

    def _step_whole(self, latest_weight: Tensor) -> None:
        updates = [_gradient(parameter) for parameter in self._whole]
        _average(self._moments, torch._foreach_mul(updates, updates), latest_weight)
        torch._foreach_div_(updates, torch._foreach_sqrt(self._moments))
        torch._foreach_mul_(updates, self._scales(updates))
        torch._foreach_sub_(self._whole, updates)

    def _step_factored(self, latest_weight: Tensor, group: slice) -> None:
        """The second moment of an element is row * column / mean of the rows; section 3."""
        parameters, rows, columns = self._factored[group], self._rows[group], self._columns[group]
        updates = [_rows_first(_gradient(parameter)).contiguous() for parameter in parameters]
        squares = torch._foreach_mul(updates, updates)
        _average(rows, [square.mean(dim=1, keepdim=True) for square in squares], latest_weight)
        _average(columns, [square.mean(dim=0, keepdim=True) for square in squares], latest_weight)
        torch._foreach_mul_(updates, [(row / row.mean(dim=0, keepdim=True)).rsqrt_() for row in rows])
        torch._foreach_mul_(updates, [column.rsqrt() for column in columns])
        torch._foreach_mul_(updates, self._scales(updates))
        torch._foreach_sub_([_rows_first(parameter) for parameter in parameters], updates)

    def _scales(self, updates: list[Tensor]) -> list[Tensor]:
        """The learning rate, one number per update, lower where its root mean square is above CLIP_THRESHOLD."""
        sizes = torch._foreach_norm(updates)
        torch._foreach_div_(sizes, [CLIP_THRESHOLD * update.numel() ** 0.5 for update in updates])
        torch._foreach_clamp_min_(sizes, 1.0)
        torch._foreach_reciprocal_(sizes)
        torch._foreach_mul_(sizes, self._learning_rate)
        return list(sizes)


@torch.no_grad()
def _step_early(optimizer: "weakref.ref[Adafactor]", group: slice, parameter: Tensor) -> None:
    """Move a parameter in the backward pass. It has no reference to its optimizer, which has one to it."""
    owner = optimizer()
    assert owner is not None
    owner._step_factored(owner._latest_weight(), group)
    parameter.grad = None


def _groups(parameters: list[Tensor]) -> list[slice]:
    """Groups of neighbours with at most CACHED values, or one larger parameter. On a GPU groups are larger: every call
    costs, and the cache does not help."""
    if not parameters:
        return []
    most = CACHED if parameters[0].device.type == "cpu" else TOGETHER_ON_A_GPU
    groups, first, values = [], 0, 0
    for index, parameter in enumerate(parameters):
        if index > first and values + parameter.numel() > most:
            groups.append(slice(first, index))
            first, values = index, 0
        values += parameter.numel()
    return [*groups, slice(first, len(parameters))]


def _mean_along(tensor: Tensor, axis: int) -> Tensor:
    """Over all axes but one, a vector."""
    others = [each for each in range(tensor.dim()) if each != axis]
    return tensor.mean(dim=others)


def _product(means: Sequence[Tensor], leaves_out: int) -> Tensor:
    """The values whose means along the axes are given, if they are a product of one factor for each axis; 1 long along
    the axis that is left out. In float64, as squared gradients go down to GRADIENT_FLOOR."""
    factors = [mean.double() for mean in means]
    total = factors[0].mean()
    product = torch.ones((), dtype=torch.float64, device=total.device)
    for axis, factor in enumerate(factors):
        if axis != leaves_out:
            shape = [-1 if each == axis else 1 for each in range(len(factors))]
            product = product * (factor / total).view(shape)
    return product * total


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _rows_first(tensor: Tensor) -> Tensor:
    """A view with the last two axes in front: sums over the sides of a 3x3 kernel are slow if they are contiguous."""
    return tensor.movedim((-2, -1), (0, 1))


def _average(moments: list[Tensor], latest: list[Tensor], latest_weight: Tensor) -> None:
    """Move the running averages towards the latest squares, in place; overwrites `latest`. The weight, 0-dim, is
    1 - decay."""
    torch._foreach_add_(latest, GRADIENT_FLOOR)
    torch._foreach_lerp_(moments, latest, [latest_weight] * len(moments))
