"""Scripts as users of Zennit write them."""

from __future__ import annotations

START = """
import torch
from torch import nn
from zennit.attribution import Gradient, SmoothGrad, IntegratedGradients

torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(),
    nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12 * 4 * 4, 16), nn.ReLU(), nn.Linear(16, 10),
)
input = torch.randn(2, 3, 16, 16)
target = torch.eye(10)[[0, 7]]
"""

SCRIPTS = {
    "one_hot_target": """
from zennit.composites import EpsilonPlusFlat
composite = EpsilonPlusFlat()
attributor = Gradient(model, composite)
with attributor:
    output, relevance = attributor(input, target)
""",
    "without_with": """
from zennit.composites import EpsilonAlpha2Beta1
output, relevance = Gradient(model=model, composite=EpsilonAlpha2Beta1())(input, target)
""",
    "plain_gradient_of_the_output_itself": """
input.requires_grad = True
with Gradient(model) as attributor:
    output, relevance = attributor(input)
""",
    "input_that_is_no_leaf": """
from zennit.composites import EpsilonPlus
input = torch.randn(2, 3, 16, 16, requires_grad=True) * 1.5
with Gradient(model, EpsilonPlus()) as attributor:
    output, relevance = attributor(input, attr_output=target)
""",
    "function_of_the_output": """
from zennit.composites import EpsilonPlus
def one_hot_max(output):
    values, indices = output.max(1)
    return values[:, None] * torch.eye(output.shape[1])[indices]
with Gradient(model, EpsilonPlus()) as attributor:
    output, relevance = attributor(input, one_hot_max)
""",
    "default_of_the_attributor": """
with Gradient(model, attr_output=torch.ones_like) as attributor:
    output, relevance = attributor(input)
""",
    "default_is_overridden": """
from zennit.composites import ExcitationBackprop
with Gradient(model, ExcitationBackprop(), attr_output=torch.ones_like) as attributor:
    output, relevance = attributor(input, lambda out: target * out)
""",
    "retain_graph": """
from zennit.composites import GuidedBackprop
with Gradient(model, GuidedBackprop(), None, False, True) as attributor:
    output, relevance = attributor(input, target)
""",
    "no_gradients_of_parameters": """
from zennit.composites import EpsilonPlus
for param in model.parameters():
    param.requires_grad = False
with Gradient(model, EpsilonPlus()) as attributor:
    for _ in range(2):
        output, relevance = attributor(input, target)
""",
    "smoothgrad": """
torch.manual_seed(7)
with SmoothGrad(model, noise_level=0.1, n_iter=5) as attributor:
    output, relevance = attributor(input, target)
""",
    "smooth_relevance": """
from zennit.composites import EpsilonPlusFlat
torch.manual_seed(7)
with SmoothGrad(model, EpsilonPlusFlat(), noise_level=0.2, n_iter=3) as attributor:
    output, relevance = attributor(input, target)
""",
    "smoothgrad_of_one": """
output, relevance = SmoothGrad(model, n_iter=1)(input, target)
""",
    "integrated_gradients": """
with IntegratedGradients(model, n_iter=4, baseline_fn=lambda x: 0.1 * torch.ones_like(x)) as attributor:
    output, relevance = attributor(input, target)
""",
    "box_from_tensors_of_the_inputs_size": """
from zennit.composites import COMPOSITES
from zennit.canonizers import SequentialMergeBatchNorm
high = torch.full_like(input, 4)
composite = COMPOSITES['epsilon_gamma_box'](low=-high, high=high, canonizers=[SequentialMergeBatchNorm()])
with Gradient(model, composite) as attributor:
    output, relevance = attributor(input, target)
""",
    "box_per_channel": """
from zennit.composites import EpsilonGammaBox
low, high = torch.tensor([-3., -4., -5.]).view(1, 3, 1, 1), torch.tensor([4., 3., 5.]).view(1, 3, 1, 1)
with Gradient(model, EpsilonGammaBox(low=low, high=high, gamma=0.5)) as attributor:
    output, relevance = attributor(input, target)
""",
    "stabilizers_and_zero_params": """
from zennit.composites import EpsilonAlpha2Beta1Flat
from zennit.core import Stabilizer
composite = EpsilonAlpha2Beta1Flat(
    epsilon=Stabilizer(epsilon=1e-2, norm_scale=True), stabilizer=Stabilizer(epsilon=1e-3, clip=True),
    zero_params='bias',
)
with Gradient(model, composite) as attributor:
    output, relevance = attributor(input, target)
""",
    "gamma_without_bias_and_a_clipped_stabilizer": """
from zennit.composites import EpsilonGammaBox
from zennit.core import Stabilizer
composite = EpsilonGammaBox(
    low=-3., high=3., epsilon=1e-4, gamma=2., stabilizer=Stabilizer(epsilon=1e-5, clip=True), zero_params=['bias'],
)
with Gradient(model, composite) as attributor:
    output, relevance = attributor(input, target)
""",
    "layer_map": """
from zennit.composites import LayerMapComposite
from zennit.rules import Epsilon, ZPlus, Norm, Pass
from zennit.types import Convolution, Activation, AvgPool
composite = LayerMapComposite(layer_map=[
    (Activation, Pass()), (AvgPool, Norm()), (Convolution, ZPlus()), (nn.Linear, Epsilon(epsilon=1e-6)),
])
with Gradient(model, composite) as attributor:
    output, relevance = attributor(input, target)
""",
    "special_first_layer": """
from zennit.composites import SpecialFirstLayerMapComposite
from zennit.rules import AlphaBeta, Epsilon, Pass, WSquare
from zennit.types import Activation, Linear
composite = SpecialFirstLayerMapComposite(
    layer_map=[(Activation, Pass()), (nn.Linear, Epsilon(0.01)), (Linear, AlphaBeta(3, 2))],
    first_map=[(Linear, WSquare(stabilizer=1e-4))],
)
with Gradient(model, composite) as attributor:
    output, relevance = attributor(input, target)
""",
    "name_map": """
from zennit.composites import NameMapComposite
from zennit.rules import Epsilon, Flat, Gamma, Pass
composite = NameMapComposite([(['0'], Flat()), (['3'], Gamma(0.3)), (['1', '4', '8'], Pass()), (['9'], Epsilon())])
with Gradient(model, composite) as attributor:
    output, relevance = attributor(input, target)
""",
    "name_and_layer_map": """
from zennit.composites import NameLayerMapComposite
from zennit.rules import Epsilon, Gamma, Pass, ZBox
composite = NameLayerMapComposite(
    name_map=[(['0'], ZBox(-3., 3.)), (['9'], Epsilon(0.))],
    layer_map=[(nn.ReLU, Pass()), (nn.Conv2d, Gamma()), (nn.Linear, Epsilon())],
)
with Gradient(model, composite) as attributor:
    output, relevance = attributor(input, target)
""",
    "mixed": """
from zennit.composites import EpsilonPlusFlat, MixedComposite, NameMapComposite
from zennit.rules import Epsilon
composite = MixedComposite([NameMapComposite([(['3'], Epsilon(0.1))]), EpsilonPlusFlat()])
with Gradient(model, composite) as attributor:
    output, relevance = attributor(input, target)
""",
    "module_map": """
from zennit.core import Composite
from zennit.rules import AlphaBeta, Epsilon
from zennit.types import Linear
def module_map(ctx, name, module):
    if list(module.children()) or not isinstance(module, Linear):
        return None
    ctx['leafnum'] = ctx.get('leafnum', -1) + 1
    return AlphaBeta(alpha=2, beta=1) if ctx['leafnum'] < 2 else Epsilon(epsilon=1e-3)
with Gradient(model, Composite(module_map=module_map)) as attributor:
    output, relevance = attributor(input, target)
""",
    "composite_class": """
from zennit.core import Composite
from zennit.rules import Epsilon, Gamma, Norm, Pass, ZBox
from zennit.types import Activation, AvgPool, Convolution, Linear
class LeafNumberTypeComposite(Composite):
    def __init__(self, leafnum_map):
        super().__init__(module_map=self.mapping)
        self.leafnum_map = leafnum_map
    def mapping(self, ctx, name, module):
        if list(module.children()):
            return None
        ctx['leafnum'] = ctx.get('leafnum', -1) + 1
        for (low, high), dtype, template in self.leafnum_map:
            if isinstance(module, dtype) and low <= ctx['leafnum'] < high:
                return template
        return None
inf = float('inf')
composite = LeafNumberTypeComposite([
    [(0, 1), Convolution, ZBox(low=-3.0, high=3.0)], [(1, 5), Linear, Gamma(gamma=0.25)],
    [(5, inf), Linear, Epsilon(epsilon=0.5)], [(0, inf), Activation, Pass()],
    [(0, inf), (AvgPool, nn.MaxPool2d), Norm()],
])
with Gradient(model, composite) as attributor:
    output, relevance = attributor(input, target)
""",
    "identity_of_a_module": """
from zennit.core import Composite
from zennit.canonizers import SequentialMergeBatchNorm
from zennit.rules import Epsilon, Pass, ZPlus
special = {model[3]: Epsilon(0.2), model[0]: ZPlus(), model[1]: Pass()}
composite = Composite(
    module_map=lambda ctx, name, module: special.get(module), canonizers=[SequentialMergeBatchNorm()],
)
with Gradient(model, composite) as attributor:
    output, relevance = attributor(input, target)
""",
    "hooks_of_ones_own": """
from zennit.composites import LayerMapComposite
from zennit.core import BasicHook, Hook, ParamMod
class Ignore(Hook):
    def backward(self, module, grad_input, grad_output):
        return grad_output
class Scaled(Hook):
    def __init__(self, scale=0.2):
        super().__init__()
        self.scale = scale
    def forward(self, module, input, output):
        self.stored_tensors['input'] = input
    def backward(self, module, grad_input, grad_output):
        stored = self.stored_tensors['input'][0]
        return (grad_input[0] * (stored.clip(min=0.) + stored.clip(max=0.) * self.scale),)
    def copy(self):
        return self.__class__(scale=self.scale)
positive = BasicHook(param_modifiers=[ParamMod(lambda x, _: x.clip(min=0.), zero_params=['bias'])])
composite = LayerMapComposite([(nn.ReLU, Ignore()), (nn.Conv2d, Scaled(0.23)), (nn.Linear, positive)])
with Gradient(model, composite) as attributor:
    output, relevance = attributor(input, target)
""",
    "a_function_as_stabilizer": """
from zennit.composites import EpsilonPlus
def clipped(z):
    return ((z == 0.) + z.sign()) * z.abs().clip(min=1e-3)
composite = EpsilonPlus(epsilon=clipped, stabilizer=lambda z: z + 1e-4)
with Gradient(model, composite) as attributor:
    output, relevance = attributor(input, target)
""",
    "canonizer_of_ones_own": """
from zennit.canonizers import Canonizer
from zennit.core import Composite
class SoftplusCanonizer(Canonizer):
    def __init__(self, beta=10.):
        self.beta, self.module, self.children = beta, None, None
    def apply(self, root_module):
        instances = []
        for module in root_module.modules():
            children = [(n, c) for n, c in module.named_children() if isinstance(c, nn.ReLU)]
            if children:
                instance = self.copy()
                instance.register(module, children)
                instances.append(instance)
        return instances
    def register(self, module, children):
        self.module, self.children = module, children
        for name, _ in children:
            setattr(module, name, nn.Softplus(beta=self.beta))
    def remove(self):
        for name, child in self.children:
            setattr(self.module, name, child)
    def copy(self):
        return SoftplusCanonizer(beta=self.beta)
with Gradient(model, Composite(canonizers=[SoftplusCanonizer(3.)])) as attributor:
    output, relevance = attributor(input, target)
""",
    "attribute_canonizer": """
from zennit.canonizers import AttributeCanonizer, CompositeCanonizer, SequentialMergeBatchNorm
from zennit.composites import EpsilonPlus
from zennit.layer import Sum
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.bn, self.act = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU(inplace=True)
        self.bn.running_mean.normal_(0, 0.2)
        self.bn.running_var.uniform_(0.5, 1.5)
    def forward(self, x):
        return self.act(self.bn(self.a(x)) + x)
model = nn.Sequential(Block(), Block(), *model).eval()
def with_sum(self, x):
    return self.act(self.added(torch.stack([self.bn(self.a(x)), x], dim=-1)))
def attributes(name, module):
    return {'forward': with_sum.__get__(module), 'added': Sum()} if type(module) is Block else None
canonizer = CompositeCanonizer([SequentialMergeBatchNorm(), AttributeCanonizer(attributes)])
with Gradient(model, EpsilonPlus(canonizers=[canonizer])) as attributor:
    output, relevance = attributor(input, target)
""",
    "named_batch_norms": """
from zennit.canonizers import NamedMergeBatchNorm
from zennit.composites import EpsilonGammaBox
model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(980, 6),
                      nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 10)).eval()
for norm in (model[1], model[5]):
    norm.running_mean.normal_(0, 0.2)
    norm.running_var.uniform_(0.5, 1.5)
composite = EpsilonGammaBox(-4., 4., canonizers=[NamedMergeBatchNorm([(['0'], '1'), (['4'], '5')])])
with Gradient(model, composite) as attributor:
    output, relevance = attributor(input, target)
""",
    "registered_by_hand": """
from zennit.composites import EpsilonPlus
composite = EpsilonPlus()
composite.register(model)
output, relevance = Gradient(model, composite)(input, target)
composite.remove()
""",
    "model_modified_by_a_context": """
from zennit.composites import EpsilonAlpha2Beta1Flat
from zennit.canonizers import SequentialMergeBatchNorm
composite = EpsilonAlpha2Beta1Flat(canonizers=[SequentialMergeBatchNorm()])
with composite.context(model) as modified_model:
    output, relevance = Gradient(modified_model)(input, target)
""",
    "attributor_of_ones_own": """
from zennit.composites import EpsilonPlus
class TimesInput(Gradient):
    def forward(self, input, attr_output_fn):
        output, gradient = self.grad(input, attr_output_fn)
        return output, gradient * input
with TimesInput(model, EpsilonPlus()) as attributor:
    output, relevance = attributor(input, target)
""",
    "one_attributor_per_image": """
from zennit.composites import EpsilonPlusFlat
def explain(image, label):
    with Gradient(model=model, composite=EpsilonPlusFlat()) as attributor:
        return attributor(image, lambda output: output * torch.eye(10)[[label]])
found = [explain(input[i:i + 1], label) for i, label in enumerate([3, 1])]
output, relevance = (torch.cat(parts) for parts in zip(*found))
""",
    "transformed_output": """
from zennit.composites import EpsilonPlus
def probability(output):
    return output.softmax(1) * target
with Gradient(model, EpsilonPlus()) as attributor:
    output, relevance = attributor(input, probability)
prediction = output.argmax(1)
heatmap = relevance.sum(1)
relevance = relevance / heatmap.abs().amax((1, 2)).view(2, 1, 1, 1)
""",
}
