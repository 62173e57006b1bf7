"""Operations without a rule that take input times gradient where the explainer is asked to."""

from __future__ import annotations

import pytest
import torch

import fastlrp
from fastlrp import UnsupportedOperationError, composites, rules
from tests.models.cases import Body
from tests.models.kind_cases import Case, model_of

WITHOUT: dict[str, Body] = {
    "atan2": lambda m, h: torch.atan2(h, h.flip(1)),
    "hypot": lambda m, h: torch.hypot(h, h.flip(1) * m.p),
    "logaddexp": lambda m, h: torch.logaddexp(h, m.p),
    "linalg_inv": lambda m, h: torch.linalg.inv(h.view(-1, 2, 2, 2)),
}


@pytest.mark.parametrize("name", WITHOUT)
def test_unsupported_takes_the_gradient_and_says_so(name: str) -> None:
    case = Case(WITHOUT[name])
    model, x = model_of(case)
    with pytest.raises(UnsupportedOperationError, match=rf"no rule for operation '{name}'.*unsupported='gradient'"):
        fastlrp.explain(model, x, [0], "lrp0")
    explainer = fastlrp.Explainer(model, "lrp0", unsupported="gradient")
    found = explainer(x, "all", layers=["h"])["h"]
    h = model.h(model.a(x)).detach().requires_grad_()
    y = case.body(model, h).flatten(1)
    for k in range(3):
        (gradient,) = torch.autograd.grad((y * model.last.weight[k]).sum(), h, retain_graph=True)
        torch.testing.assert_close(found[:, k], h.detach() * gradient, rtol=1e-5, atol=1e-6)
    with explainer.forward(x) as record:  # The other composite has no rule for it either.
        torch.testing.assert_close(
            record.under("epsilon").relevance("all"),
            fastlrp.explain(model, x, "all", "epsilon", unsupported="gradient"),
        )
    table = str(explainer.plan)
    assert f"{name}  " in table
    assert "gradient (no rule)" in table
    assert "unsupported='gradient'" in table
    report = explainer.verify(x, "all")
    assert report.ok, str(report)
    assert f"without a rule, by input times gradient: {name} (model)" in str(report)
    assert abs(report.kept["unexplained"]) < 1e-9
    row = next(row for row in report.rows if row.operation == name)
    assert row.rule == "gradient (no rule)"
    assert (name == "hypot") == (abs(row.bias or 0.0) < 1e-4)  # It alone has degree one.


def test_unsupported_changes_nothing_else() -> None:
    model, x = model_of(Case(lambda m, h: h.norm(dim=1, keepdim=True)))
    explainer = fastlrp.Explainer(model, "epsilon_plus", unsupported="gradient")
    torch.testing.assert_close(explainer(x, "all"), fastlrp.explain(model, x, "all", "epsilon_plus"))
    assert "no rule" not in str(explainer.plan)
    assert "without a rule" not in str(explainer.verify(x, "all"))
    with pytest.raises(ValueError, match="unsupported must be 'error' or 'gradient', got 'ignore'"):
        fastlrp.Explainer(model, unsupported="ignore")  # type: ignore[arg-type]
    model, x = model_of(Case(WITHOUT["hypot"]))
    composite = composites.lrp0().with_entries((composites.operation("hypot"), rules.InputGradient()))
    found = fastlrp.explain(model, x, "all", composite)
    torch.testing.assert_close(found, fastlrp.explain(model, x, "all", "lrp0", unsupported="gradient"))
