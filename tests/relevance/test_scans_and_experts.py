"""Selective scans (Mamba), mixtures of experts, token mixing by Fourier transforms: by hand and from transformers."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pfungst.relevance import Pixels, Tokens, attribute, composite, describe, linearize
from pfungst.relevance.engine.run import execute

transformers = pytest.importorskip("transformers")


def agree(a, b, tolerance=1e-9):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


class Scan(nn.Module):
    """One Mamba block; `detached` writes out the rules of MambaLRP (Jafari et al. 2024) for gradient × input."""

    def __init__(self, detached=False):
        super().__init__()
        torch.manual_seed(0)
        self.in_proj = nn.Linear(6, 16, bias=False)
        self.x_proj = nn.Linear(8, 2 + 3 + 3, bias=False)
        self.dt_proj = nn.Linear(2, 8)
        self.out_proj = nn.Linear(8, 4, bias=False)
        self.A = nn.Parameter(-torch.rand(8, 3))
        self.D = nn.Parameter(torch.rand(8))
        self.detached = detached
        self.double().eval()

    def forward(self, x):
        c = (lambda t: t.detach()) if self.detached else (lambda t: t)
        silu = (lambda t: t * t.sigmoid().detach()) if self.detached else F.silu
        u, z = self.in_proj(x).chunk(2, -1)
        u = silu(u)
        dt, b, k = c(self.x_proj(u)).split([2, 3, 3], -1)
        dt = F.softplus(self.dt_proj(dt))
        decay, drive = torch.exp(dt[..., None] * self.A), dt[..., None] * b[:, :, None]
        state, outs = 0.0, []
        for t in range(x.shape[1]):
            state = decay[:, t] * state + drive[:, t] * u[:, t, :, None]
            outs.append((state @ k[:, t, :, None])[..., 0])
        y = torch.stack(outs, 1) + u * self.D
        z = silu(z)
        y = (y * z.detach() + y.detach() * z) / 2 if self.detached else y * z
        return self.out_proj(y)[:, -1]


def test_mamba_is_explained_by_the_rules_of_its_paper():
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    net, rules = Scan(), composite("mamba", epsilon=1e-12)
    leaf = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(Scan(detached=True)(leaf)[:, 1].sum(), leaf)
    agree(attribute(net, x, 1, rules, Pixels(channels=True)).values, g * x, 1e-7)
    lin = linearize(net, x, rules)
    agree(lin.output, net(x), 1e-12)
    rows = lin.rows(torch.eye(4, dtype=x.dtype), Tokens())
    agree(lin.columns(Tokens()), rows)
    agree(rows.sum(-1), lin.output, 1e-6)
    assert "Ignore()" in describe(net, x, rules)


class FromEmbeddings(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(inputs_embeds=x).last_hidden_state[:, -1]


SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 20}
MIXTURE = {**SMALL, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}


def config(name):
    t = transformers
    if name == "FNet":
        return t.FNetConfig(
            **SMALL, intermediate_size=32, max_position_embeddings=16, type_vocab_size=1, hidden_act="gelu"
        )
    if name == "Mixtral":
        return t.MixtralConfig(**MIXTURE, num_local_experts=3, num_experts_per_tok=2)
    if name == "Qwen3Moe":
        return t.Qwen3MoeConfig(
            **MIXTURE, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, head_dim=8
        )
    if name == "Mamba2":
        return t.Mamba2Config(**SMALL, state_size=4, num_heads=4, head_dim=8, n_groups=1, chunk_size=4)
    if name == "Rwkv":  # its cache is written in place, which autograd itself refuses
        return t.RwkvConfig(**SMALL, attention_hidden_size=16, intermediate_size=32, use_cache=False)
    return getattr(t, f"{name}Config")(**SMALL, state_size=4)


@pytest.mark.parametrize(
    ("name", "experts", "rules"),
    [
        ("FNet", None, "transformer"),
        ("Mixtral", "eager", "transformer"),
        ("Mixtral", "grouped_mm", "transformer"),
        ("Mixtral", "batched_mm", "transformer"),
        ("Qwen3Moe", "grouped_mm", "transformer"),
        ("Mamba", None, "transformer"),
        ("Mamba", None, "mamba"),
        ("FalconMamba", None, "mamba"),
        ("Mamba2", None, "mamba"),
        ("Rwkv", None, "transformer"),
    ],
)
def test_transformers_models_conserve(name, experts, rules):
    """Σ relevance of tokens and of additive constants = score; every token of FNet counts (it was exactly zero)."""
    if not hasattr(transformers, f"{name}Config"):
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    torch.manual_seed(0)
    settings = config(name)
    if experts is not None:
        settings._experts_implementation = experts
    net = FromEmbeddings(getattr(transformers, f"{name}Model")(settings).eval())
    x = torch.randn(2, 5, 16)
    lin = linearize(net, x, rules)
    agree(lin.output, net(x).detach(), 1e-5)
    weights = torch.arange(1.0, 17.0)
    rows = lin.rows(weights[None], Tokens())[:, 0]
    agree((lin.columns(Tokens()) * weights[:, None]).sum(1), rows, 1e-3)
    assert (rows != 0).all()
    run = execute(net, x, composite(rules), biases=True)
    leaves = [leaf for _, leaf in run.biases]
    grads = torch.autograd.grad((run.output * weights).sum(), [*run.streams, *leaves], allow_unused=True)
    total = sum((g * v).sum() for g, v in zip(grads, [*run.streams, *leaves], strict=True) if g is not None)
    agree(total, (lin.output * weights).sum(), 2e-3)


@pytest.mark.parametrize("form", ["keywords", "positions"])
def test_grouped_products_get_the_rule_of_linear_layers(form):
    """Oracle: each group by a linear layer."""
    if not hasattr(torch, "_grouped_mm"):
        pytest.skip("this torch has no grouped product")
    torch.manual_seed(0)
    weight = torch.randn(3, 16, 8)
    ends = torch.tensor([4, 4, 6], dtype=torch.int32)

    class Grouped(nn.Module):
        def __init__(self, written):
            super().__init__()
            self.written = written

        def forward(self, x):
            if self.written:
                return torch.cat([F.linear(x[:4], weight[0].t()), F.linear(x[4:], weight[2].t())])
            if form == "keywords":
                return torch._grouped_mm(input=x, mat2=weight, offs=ends)
            return torch._grouped_mm(x, weight, ends)

    x = torch.randn(6, 16)
    try:
        agree(Grouped(False)(x), Grouped(True)(x), 1e-4)
    except (RuntimeError, NotImplementedError):
        pytest.skip("this torch has no grouped product on CPUs")
    for rules in ("transformer", composite("transformer", gamma=0.3)):
        mine, expected = (attribute(Grouped(w), x, 2, rules) for w in (False, True))
        agree(mine.values, expected.values, 1e-4)
        agree(mine.score, expected.score, 1e-5)
