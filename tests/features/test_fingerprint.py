import copy
import functools
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from pfungst.features import content_key, file_key, model_key


class Net(nn.Module):
    """Weights, a buffer that is not saved, settings, a tensor that is no buffer, a function, a list, a counter."""

    def __init__(self, power=2.0):
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)
        self.register_buffer("shift", torch.zeros(4, 1, 1), persistent=False)
        self.power, self.plain, self.act = power, torch.ones(4, 1, 1), torch.relu
        self.more, self.calls = [torch.zeros(1), {"scale": 1.0}], 0

    def forward(self, x):
        self._count()
        x = self.act(self.norm(self.first(x)) * self.plain - self.shift) ** self.power
        return self.last(x.mean((2, 3)) * self.more[1]["scale"] + self.more[0])

    def _count(self):
        self.calls += 1


def net():
    torch.manual_seed(0)
    return Net().eval()


def tied(a, b):
    return lambda module, args, out: out * a + b


CHANGES = {
    "a weight in the middle": lambda m: m.norm.weight.data.view(-1)[2:3].add_(1e-6),
    "running statistics": lambda m: m.norm.running_var.mul_(1.001),
    "through .data": lambda m: m.first.weight.data.mul_(1.001),
    "through numpy": lambda m: m.first.bias.detach().numpy().__setitem__(0, 3.0),
    "a buffer that is not saved": lambda m: m.shift.add_(1),
    "a tensor that is no buffer": lambda m: m.plain.mul_(2),
    "an element of a list": lambda m: m.more[0].add_(1),
    "a setting in a dictionary": lambda m: m.more[1].update(scale=2.0),
    "a setting": lambda m: setattr(m, "power", 3.0),
    "epsilon": lambda m: setattr(m.norm, "eps", 1e-3),
    "stride": lambda m: setattr(m.first, "stride", (2, 2)),
    "a function": lambda m: setattr(m, "act", torch.tanh),
    "a function with arguments": lambda m: setattr(m, "act", functools.partial(torch.clamp, min=0.1)),
    "a module": lambda m: setattr(m, "norm", nn.GroupNorm(1, 4)),
    "precision": lambda m: m.half(),
    "a hook": lambda m: m.first.register_forward_hook(tied(2, 0)),
    "forward of one instance": lambda m: setattr(m.last, "forward", lambda x: x[:, :2]),
    "a parametrisation": lambda m: nn.utils.parametrizations.weight_norm(m.last),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_the_function_changes_the_key(change):
    model, other = net(), net()
    assert model_key(model) == model_key(other)
    CHANGES[change](other)
    assert model_key(model) != model_key(other)


def test_hooks_count_by_what_they_hold():
    one, two, three = net(), net(), net()
    for model, scale in ((one, 2), (two, 3), (three, 2)):
        model.first.register_forward_hook(tied(scale, torch.zeros(1)))
    assert model_key(one) == model_key(three) != model_key(two)


def test_what_does_not_change_the_function_does_not_count():
    model, other = net(), net()
    other(torch.rand(1, 3, 5, 5))
    assert other.calls == 1
    other.requires_grad_(False)
    assert model_key(model) == model_key(other) == model_key(copy.deepcopy(other)) == model_key(other.train())
    assert model_key(model, "crop", 224) != model_key(model, "crop", 225)
    assert model_key(model, ["ab", "c"]) != model_key(model, ["a", "bc"])


def test_edited_code_of_a_function_file_changes_the_key(tmp_path):
    source = """
from torch import nn
SCALE = 2.0
def scaled(x):
    return x * SCALE
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)
        nn.init.ones_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)
    def forward(self, x):
        return self.fc(scaled(x).mean((2, 3)))
"""
    keys = set()
    for text in (
        source,
        source.replace("* SCALE", "/ SCALE"),
        source.replace("= 2.0", "= 3.0"),
        source.replace("(2, 3)))", "(3, 2)).relu())"),
        source + "\n\n# a comment\n",
    ):
        space = {"__name__": "toy"}
        exec(compile(text, str(tmp_path / f"{len(keys)}.py"), "exec"), space)
        keys.add(model_key(space["Net"]()))
    assert len(keys) == 4


def test_quantised_and_traced_models_count_with_their_weights():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()
    quantised = [
        torch.ao.quantization.quantize_dynamic(m, {nn.Linear}) for m in (model, copy.deepcopy(model))
    ]
    assert model_key(quantised[0]) == model_key(quantised[1])
    other = copy.deepcopy(model)
    other[0].weight.data.mul_(1.5)
    assert model_key(torch.ao.quantization.quantize_dynamic(other, {nn.Linear})) != model_key(quantised[0])
    traced = [torch.jit.trace(m, torch.rand(1, 4)) for m in (model, copy.deepcopy(model), other)]
    assert model_key(traced[0]) == model_key(traced[1]) != model_key(traced[2])
    graphs = [torch.fx.symbolic_trace(m) for m in (model, nn.Sequential(model[0], nn.Tanh()))]
    assert model_key(graphs[0]) == model_key(torch.fx.symbolic_trace(model)) != model_key(graphs[1])


SCRIPT = """
import sys, torch
sys.path[:0] = {path!r}
from pfungst.features import model_key
"""
OWN = "from test_fingerprint import net; print(model_key(net()))"
LIBRARIES = """
import timm, transformers
torch.manual_seed(0)
vit = transformers.ViTModel(transformers.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
    intermediate_size=8, image_size=16, patch_size=8))
before = model_key(vit)
vit.eval()(torch.rand(1, 3, 16, 16))
assert model_key(vit) == before
print(before, model_key(timm.create_model("resnet18")))
"""


def elsewhere(script, seed):
    """What a script prints in a process of its own."""
    script = SCRIPT.format(path=[os.path.dirname(__file__), *sys.path]) + script
    environment = os.environ | {"PYTHONHASHSEED": seed}
    return subprocess.check_output([sys.executable, "-c", script], text=True, env=environment).strip()


@pytest.mark.slow
def test_the_key_is_the_same_in_another_process():
    assert elsewhere(OWN, "1") == model_key(net())


@pytest.mark.slow
def test_the_key_of_library_models_is_the_same_in_all_processes():
    assert elsewhere(LIBRARIES, "1") == elsewhere(LIBRARIES, "2")


def test_images_and_files(tmp_path):
    x = torch.rand(3, 4, 4)
    assert (
        content_key(x)
        == content_key(x.clone())
        == content_key(x.permute(1, 2, 0).contiguous().permute(2, 0, 1))
    )
    others = [x.double(), x + 1e-7, x.reshape(3, 2, 8), x.half(), x.to(torch.bfloat16)]
    assert len({content_key(o) for o in [x, *others]}) == 6
    assert content_key(np.zeros(3, np.uint8)) != content_key(np.zeros(3, np.int8))
    file = tmp_path / "a.png"
    file.write_bytes(b"one")
    first, stat = file_key(file), file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as archives and copies do
    assert file_key(file) != first
