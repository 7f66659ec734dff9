"""Networks as people write them, for tests: what each does that is out of the ordinary stands in its name."""

from collections import namedtuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune

from raylth.core.permutation import rule

IN, CLASSES, HIDDEN = 12, 5, 8
Outputs = namedtuple("Outputs", "logits features")


class Plain(nn.Module):
    """Three linear layers; the base of the others."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(IN, HIDDEN), nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, CLASSES)

    def features(self, x):
        return torch.relu(self.fc2(torch.relu(self.fc1(x))))

    def forward(self, x):
        return self.head(self.features(x))


class SharedModule(Plain):
    def __init__(self):
        super().__init__()
        self.between, self.again = nn.Linear(HIDDEN, HIDDEN), self.fc2

    def forward(self, x):
        x = torch.relu(self.between(self.features(x)))
        return self.head(torch.relu(self.again(x)))


class SharedWeight(Plain):
    def __init__(self):
        super().__init__()
        self.fc3 = nn.Linear(HIDDEN, HIDDEN)
        self.share()

    def share(self):
        self.fc3.weight = self.fc2.weight

    def forward(self, x):
        return self.head(torch.relu(self.fc3(self.features(x))))


class SharedMemory(SharedWeight):
    def share(self):
        self.fc3.weight.data = self.fc2.weight.data


class SharedView(SharedWeight):
    def share(self):
        self.fc3.weight = nn.Parameter(self.fc2.weight.data.flatten()[: HIDDEN * HIDDEN].view(HIDDEN, HIDDEN).T)


class SharedAcrossList(Plain):
    def __init__(self):
        super().__init__()
        self.body = nn.ModuleList([self.fc1, self.fc2])


class WeightNorm(Plain):
    def __init__(self):
        super().__init__()
        parametrizations.weight_norm(self.fc2)


class Orthogonal(Plain):
    def __init__(self):
        super().__init__()
        parametrizations.orthogonal(self.fc2)


class OldSpectralNorm(Plain):
    def __init__(self):
        super().__init__()
        nn.utils.spectral_norm(self.fc2)


class Pruned(Plain):
    def __init__(self):
        super().__init__()
        prune.random_unstructured(self.fc2, "weight", 0.5)


class PrunedBias(Plain):
    def __init__(self):
        super().__init__()
        prune.random_unstructured(self.head, "bias", 0.5)


class CompiledBlock(Plain):
    def __init__(self):
        super().__init__()
        self.fc2 = torch.compile(self.fc2)


class Lazy(Plain):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.LazyLinear(HIDDEN)


class Bessel(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x)


class UnknownActivation(Plain):
    def __init__(self):
        super().__init__()
        self.act = Bessel()

    def forward(self, x):
        return self.head(self.act(self.fc1(x)))


class UnknownOperation(Plain):
    def forward(self, x):
        return self.head(torch.special.bessel_j1(self.features(x)))


class Branch(Plain):
    def forward(self, x):
        y = super().forward(x)
        return y if y.sum() > 0 else -y


class Tuple(Plain):
    def forward(self, x):
        return self.head(self.features(x)), x


class TupleInTraining(Plain):
    def forward(self, x):
        y = self.head(self.features(x))
        return (y, x) if self.training else y


class NamedTuple(Plain):
    def forward(self, x):
        return Outputs(self.head(self.features(x)), x)


class Dict(Plain):
    def forward(self, x):
        return {"logits": self.head(self.features(x))}


class Options(Plain):
    def forward(self, x, return_features=False, *others, scale=None, **further):
        if return_features:
            return self.features(x)
        y = self.head(self.features(x))
        return y if scale is None else y * scale


class TwoInputs(Plain):
    def forward(self, x, y):
        return self.head(self.features(x) + y)


class Mismatch(Plain):
    def __init__(self):
        super().__init__()
        self.fc2 = nn.Linear(HIDDEN, HIDDEN + 1)


class TooManyClasses(Plain):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(HIDDEN, CLASSES + 1)


class NotFinite(Plain):
    def forward(self, x):
        return super().forward(x) / 0


class InPlaceBackward(Plain):
    def forward(self, x):
        y = torch.sigmoid(self.fc1(x))
        z = self.fc2(y)
        y.mul_(2)
        return self.head(z)


class HalfWeights(Plain):
    def __init__(self):
        super().__init__()
        self.half()


class NotPrunable(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(IN, CLASSES))

    def forward(self, x):
        return x @ self.weight


class AlwaysDropout(Plain):
    def forward(self, x):
        return self.head(F.dropout(self.features(x), 0.5))


class LayerDrop(Plain):
    calls = 0

    def forward(self, x):
        self.calls += 1  # what random.random() would be now and then
        y = torch.relu(self.fc1(x))
        return self.head(torch.relu(self.fc2(y)) if self.calls % 2 else y)


class BatchStatistics(Plain):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(HIDDEN, track_running_stats=False)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.fc1(x))))


class WritesItsInput(Plain):
    def forward(self, x):
        return super().forward(x.sub_(0.5))


class Squeezes(Plain):
    def forward(self, x):
        return super().forward(x).squeeze()


class HookOnTheNetwork(Plain):
    def __init__(self):
        super().__init__()
        self.register_forward_hook(lambda module, args, out: 2 * out)


class ExtraState(Plain):
    def get_extra_state(self):
        return {"epoch": 1}

    def set_extra_state(self, state):
        pass


class ComplexBuffer(Plain):
    def __init__(self):
        super().__init__()
        self.register_buffer("frequencies", torch.zeros(3, dtype=torch.complex64))


class AutocastInside(Plain):
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(x)


class NoGradient(Plain):
    def forward(self, x):
        with torch.no_grad():
            return super().forward(x)


class InfiniteGradient(Plain):
    """Logits that are finite and whose gradient is not: the root's at 0."""

    def forward(self, x):
        return super().forward(x) + (self.fc2.bias - self.fc2.bias.detach()).abs().sqrt().sum()


class NumpyInit(Plain):
    def __init__(self):
        super().__init__()
        for layer in (self.fc1, self.fc2, self.head):
            layer.weight.data = torch.from_numpy(np.random.default_rng().normal(size=layer.weight.shape).astype("float32"))


class OwnSeed(Plain):
    def __init__(self):
        torch.manual_seed(0)
        super().__init__()


class Fixed(Plain):
    """Nothing of it can be permuted: each hidden unit has a number of its own."""

    def forward(self, x):
        return self.head(torch.relu(self.fc1(x)) * torch.arange(float(HIDDEN)))


@rule("aten.logcumsumexp")
def wrong(follower, node, given):
    """A rule of one's own that is wrong: each unit's output depends on those before it."""
    return follower.layout(given["self"])


class Misleading(Plain):
    def forward(self, x):
        return self.head(torch.logcumsumexp(self.features(x), 1))


class Indices(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(2, HIDDEN), nn.Linear(HIDDEN, CLASSES)

    def forward(self, x):
        return self.head(self.embedding(x.long()).mean(1))


class ValuesAtInit(Plain):
    """Looks at values while it is built, as stochastic depth's rates often do."""

    def __init__(self):
        super().__init__()
        self.rates = [rate.item() for rate in torch.linspace(0, 0.1, 3)]


class OwnNorm(nn.BatchNorm1d):
    pass


class OwnNormWithInit(nn.BatchNorm1d):
    def __init__(self, channels):
        super().__init__(channels, eps=1e-3)

    def _check_input_dim(self, input):
        pass


class ViewOfAnImage(nn.Module):
    """Images are trained with channels last, of which there is no view as vectors."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * 36, CLASSES)

    def forward(self, x):
        x = torch.relu(self.conv(x))
        return self.head(x.view(x.size(0), -1))


class NormAndActivation(nn.BatchNorm1d):
    def forward(self, x):
        return F.relu(super().forward(x))


class OwnLinear(nn.Linear):
    def reset_parameters(self):
        nn.init.normal_(self.weight, std=0.3)
        nn.init.zeros_(self.bias)


class Normalised(Plain):
    def __init__(self, norm):
        super().__init__()
        self.fc2, self.norm = OwnLinear(HIDDEN, HIDDEN), norm(HIDDEN)

    def forward(self, x):
        return self.head(torch.relu(self.fc2(torch.relu(self.norm(self.fc1(x))))))
