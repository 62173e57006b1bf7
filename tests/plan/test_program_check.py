"""The check of programs passes what plans make and names every kind of fault that is planted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import fastlrp
from fastlrp.plan.forms import Affine
from fastlrp.plan.passes import check as program_check
from fastlrp.plan.passes.check import ProgramError, check_backward, check_emissions, check_forward, check_program
from fastlrp.plan.schedule import Schedule
from fastlrp.plan.steps import Emission, Factor, Flow


class Net(nn.Module):
    """Layers with sparse forms, a pool, a sum of flows, and a product whose transpose has two results."""

    def __init__(self):
        super().__init__()
        self.a, self.pool, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, padding=1)
        self.c, self.d = nn.Linear(64, 5), nn.Linear(64, 1)

    def forward(self, x):
        x = self.pool(torch.relu(self.a(x)))
        x = (x + self.b(x)).flatten(1)
        return self.c(x) * self.d(x)


@pytest.fixture(scope="module")
def plan():
    torch.manual_seed(0)
    composite = fastlrp.composites.preset("epsilon_plus").with_entries(
        (fastlrp.composites.operation("mul"), fastlrp.rules.Gradient())
    )
    net, x = Net().double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    return fastlrp.Explainer(net, composite, example_inputs=x).plan


def backward(plan, find, **changes):
    """The program with one changed step: the first one that ``find`` picks."""
    steps = list(plan.program.backward)
    at = next(i for i, step in enumerate(steps) if find(step))
    values = {name: change(steps[at]) if callable(change) else change for name, change in changes.items()}
    steps[at] = replace(steps[at], **values)
    return replace(plan.program, backward=tuple(steps))


def forward(plan, **changes):
    """The program with its first coefficient changed."""
    steps = list(plan.program.forward)
    at = next(i for i, step in enumerate(steps) if step.is_cache)
    steps[at] = replace(steps[at], **{name: change(steps[at]) for name, change in changes.items()})
    return replace(plan.program, forward=tuple(steps))


def is_(name):
    return lambda step: step.name.startswith(name)


def form(**changes):
    return {"form": lambda step: replace(step.form, **changes)}


BACKWARD = {
    "reads what nobody wrote": ("b (conv2d", {"ins": (98,)}, r"b \(conv2d, ZPlus\): reads register 98, which no step"),
    "reads nothing": ("b (conv2d", {"ins": ()}, "reads no register"),
    "writes twice": ("b (conv2d", {"outs": (0,)}, "writes register 0, which was written before"),
    "writes what there is not": ("b (conv2d", {"outs": (999,)}, "writes register 999, of"),
    "writes nothing": ("(model) (mul", {"outs": lambda s: (s.out, s.out)}, "each once, at least one"),
    "sizes for other results": ("(model) (mul", {"numels": (5,)}, "has 2 results and sizes of 1"),
    "a slot that is not there": ("b (conv2d", {"slots": (999,), "form": None}, "reads slot 999, which no forward step"),
    "a form that reads more": ("b (conv2d", form(coefficients=(0,)), r"sparse form that reads slots \[0\]"),
    "a form of another input": ("b (conv2d", form(leaving=(4, 4, 5)), "its result has 64 entries, its form has 80"),
    "a form of another output": ("b (conv2d", form(arriving=(4, 4, 5)), "has 64 entries, its form has 80"),
    "a pool of another size": ("pool (max_pool2d, max", form(leaving=(4, 8, 7)), "256 entries, its form has 224"),
    "a sum with one scale": ("pool (max_pool2d, sum", form(scales=(None,)), "adds 2 registers, 1 scales"),
    "a sum of other sizes": ("pool (max_pool2d, sum", {"numels": (63,)}, "has 64 entries, its form has 63"),
    "another size than the value": ("a (conv2d", {"numels": (63,), "form": None}, "has 63 entries, the value has 192"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BACKWARD)
def test_faults_of_backward_steps(plan, fault):
    name, changes, said = BACKWARD[fault]
    with pytest.raises(ProgramError, match=said):
        check_program(backward(plan, is_(name), **changes))


FORWARD = {
    "reads what nothing fills": ({"ins": lambda s: (999,)}, "reads slot 999, which neither an input nor a step"),
    "fills twice": ({"outs": lambda s: (0, *s.outs[1:])}, "fills slot 0, which was filled before"),
    "fills what there is not": ({"outs": lambda s: (999, *s.outs[1:])}, "fills slot 999, of"),
    "fills nothing": ({"outs": lambda s: ()}, r"fills \(\): each slot once"),
}


@pytest.mark.parametrize("fault", FORWARD)
def test_faults_of_forward_steps(plan, fault):
    changes, said = FORWARD[fault]
    with pytest.raises(ProgramError, match=said):
        check_program(forward(plan, **changes))


def test_faults_of_flows_and_keys(plan):
    value = plan.explained_inputs()[0]
    flow = plan.flows[value]
    for wrong, said in (
        (Flow(999, flow.factor), "is in register 999, which no step writes"),
        (Flow(flow.register, Factor(None, 999)), "has slot 999 as a factor"),
        (Flow(plan.program.top, flow.factor), "the flow of mul: has 192 entries, the value has 5"),
    ):
        with pytest.raises(ProgramError, match=said):
            check_program(replace(plan.program, flows={**plan.flows, value: wrong}))
    with pytest.raises(ProgramError, match="the coefficient 'sign': is slot 999"):
        check_program(replace(plan.program, keyed={("sign", value): 999}))


def scheduled(plan):
    values = (plan.explained_inputs()[0], plan.graph.modules["b"])
    return values, list(plan.schedule(values).steps)


def at(steps, name):
    return next(i for i, (step, _) in enumerate(steps) if step.name.startswith(name) and type(step) is not Emission)


def test_faults_of_the_order(plan):
    """In which the steps run, and of what they free."""
    program, (_, steps) = plan.program, scheduled(plan)
    top = [program.top]
    check_backward(program, steps, top)

    def refuse(changed, said, state=None):
        with pytest.raises(ProgramError, match=said):
            check_backward(program, changed, top, state)

    i = at(steps, "b (conv2d")
    step, frees = steps[i]
    early = [*steps[: i - 1], (steps[i - 1][0], (*steps[i - 1][1], *step.ins)), *steps[i:]]
    refuse(early, r"b \(conv2d, ZPlus\): reads register \d+, which was freed before")
    refuse([*steps[:i], (step, (*frees, *frees, *step.ins, *step.ins)), *steps[i + 1 :]], r"frees register \d+, twice")
    refuse([*steps[:i], (step, (997,)), *steps[i + 1 :]], "frees register 997, which no step writes")
    refuse([*steps[:-1], (steps[-1][0], ())], r"registers \[\d+\] are never freed")
    refuse([steps[i], *steps[:i], *steps[i + 1 :]], "reads register .*, which no step before it writes")
    refuse([*steps[: i + 1], steps[i], *steps[i + 1 :]], "which was freed before|which was written before")
    refuse([(replace(s, slots=(999,)) if s is step else s, f) for s, f in steps], "reads slot 999, of")
    refuse(steps, "reads slot .*, which the forward pass left empty", [None] * program.slots)
    assert any(type(s) is Emission for s, _ in steps)


def test_faults_of_emissions(plan):
    """What is emitted is kept until then, and emitted once."""
    values, steps = scheduled(plan)
    check_emissions(steps, values)
    emitted = [i for i, (step, _) in enumerate(steps) if type(step) is Emission]
    with pytest.raises(ProgramError, match="not once each"):
        check_emissions([*steps[: emitted[0]], *steps[emitted[0] + 1 :]], values)
    with pytest.raises(ProgramError, match="not once each"):
        check_emissions([*steps, steps[-1]], values)
    i = emitted[0]
    gone = steps[i][0].register
    early = [*steps[: i - 1], (steps[i - 1][0], (*steps[i - 1][1], gone)), *steps[i:]]
    with pytest.raises(ProgramError, match=rf"relevance\): reads register {gone}, which was freed before"):
        check_backward(plan.program, early, [plan.program.top])


def test_faults_of_a_forward_pass(plan):
    program, schedule = plan.program, plan.forward_schedule()
    steps = schedule.steps
    check_forward(schedule, program.inputs, program.slots)

    def refuse(changed, said, keep=schedule.keep):
        with pytest.raises(ProgramError, match=said):
            check_forward(Schedule(changed, keep), program.inputs, program.slots)

    i = next(i for i, (step, frees) in enumerate(steps) if i and step.ins and frees)
    step, frees = steps[i]
    refuse([*steps[:i], (step, (*frees, *frees)), *steps[i + 1 :]], "frees slot .*, twice")
    refuse([*steps[:i], (step, (998,)), *steps[i + 1 :]], "frees slot 998, which nothing filled")
    refuse([steps[0], (step, (program.inputs[0],))], "frees slot .*, which is to be kept|nothing filled before")
    refuse(steps[1:], "reads slot .*, which nothing filled before")
    refuse([steps[0], steps[0], *steps[1:]], "fills slot .*, which a step before it has filled")
    refuse(steps, r"slots \[998\] are to be kept and nothing fills them", schedule.keep | {998})
    refuse([(replace(steps[0][0], outs=(999,)), ()), *steps[1:]], "fills slot 999, of")


def test_plans_are_checked_on_request(plan):
    plan.check()
    assert any(isinstance(step.form, Affine) for step in plan.program.backward)


def test_every_pass_is_checked_in_tests(monkeypatch):
    """Lowering, scheduling, the choice of sparse steps, fusion: each is followed by a look at what it made."""
    assert program_check.ENABLED
    seen = []
    for name in ("check_program", "check_backward", "check_emissions", "check_forward"):
        check = getattr(program_check, name)
        monkeypatch.setattr(program_check, name, lambda *a, n=name, c=check: seen.append(n) or c(*a))
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    explainer = fastlrp.Explainer(Net().double().eval(), "epsilon_plus", paths="sparse")
    explainer(x, [0] * 16)
    assert seen.count("check_program") == 1
    assert seen.count("check_backward") == 3, "the schedule, for alive neurons, fused"
    assert seen.count("check_forward") == 1
    with explainer.forward(x, lrp_aware=False) as record:
        record.relevance([0])
    assert seen.count("check_forward") == 3, "activations only, then the coefficients"


def test_a_register_that_a_sum_reads_twice_is_freed_once():
    """Asked for in between, so that the schedule frees it and not the scheduler."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x):
            y = self.fc(x)
            return y + torch.relu(y)  # ReLU passes the register on that the sum gave to both.

    torch.manual_seed(0)
    x = torch.randn(2, 3)
    explainer = fastlrp.Explainer(Twice().eval(), "epsilon_plus", example_inputs=x)
    explainer.plan.check()
    assert explainer(x, [0, 1], layers="all")["input"].shape == (2, 2, 3)
