"""Architectures of timm and Hugging Face with random weights in which nothing is trivially zero."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

CLASSES = 5


def _words(text: str) -> list[str]:
    return text.split()


#: timm models that take any image: 64 × 64 pixels.
CONVOLUTIONAL = _words(
    """
resnet18 resnet26t resnet50 resnetblur18 resnetaa34d resnet50_gn resnet10t resnext50_32x4d seresnet18
seresnext26t_32x4d legacy_seresnet18 resnest14d res2net50_26w_4s res2net50d skresnet18 ecaresnet26t
ecaresnetlight regnetx_002 regnety_002 regnetz_005 nf_regnet_b0 nf_resnet26 densenet121 densenetblur121d dla34
dla46_c dla60_res2net hrnet_w18_small ese_vovnet19b_dw vovnet39a dpn48b dpn68 inception_next_atto
legacy_xception xception41 xception41p mobilenetv1_100 mobilenetv2_050 mobilenetv3_small_050
mobilenetv3_large_075 mobilenetv4_conv_small_050 mobilenetv4_hybrid_medium_075 mobilenetv4_conv_aa_medium
mobilenet_edgetpu_100 efficientnet_b0 efficientnet_lite0 efficientnet_es tf_efficientnetv2_b0
efficientnetv2_rw_t efficientnet_b0_gn efficientnet_b0_g16_evos efficientnet_cc_b0_4e efficientnet_blur_b0
gc_efficientnetv2_rw_t mixnet_s ghostnet_050 ghostnetv2_100 ghostnetv3_050 fastvit_t8 fastvit_sa12
fastvit_mci0 convnext_atto convnext_atto_ols convnext_zepto_rms convnext_tiny_hnf convnextv2_atto eca_nfnet_l0
resnetv2_18 resnetv2_50d_gn resnetv2_50d_frn resnetv2_50d_evos resnetv2_50x1_bit selecsls42 cspresnet50
cs3darknet_s cspnext_tiny darknet17 lcnet_035 lcnetv2_small tinynet_e rexnet_100 hardcorenas_a semnasnet_050
mnasnet_small fbnetc_100 fbnetv3_b spnasnet_100 starnet_s050 edgenext_xx_small repghostnet_050 hgnetv2_b0
hgnet_tiny poolformer_s12 poolformerv2_s12 caformer_s18 convformer_s18 convmixer_768_32 crossvit_tiny_240
crossvit_9_dagger_240 pvt_v2_b0 pvt_v2_b2_li focalnet_tiny_srf davit_tiny sam2_hiera_tiny mambaout_femto
rdnet_tiny fasternet_t0 shvit_s1 efficientvit_b0 efficientvim_m1 tiny_vit_5m_224 iformer_t lowformer_b0 csatv2
cpubone_nano tresnet_m test_mambaout test_nfnet
"""
)

#: timm models that are built for one image size.
SIZED = _words(
    """
resnext26ts eca_resnet33ts gcresnet33ts gcresnext26ts botnet26t_256 lambda_resnet26t sebotnet33ts_256
regnetz_b16_evos repvgg_a0 mobileone_s0 gernet_s levit_128s levit_conv_128s efficientformerv2_s0 mixer_s32_224
gmixer_12_224 gmlp_ti16_224 resmlp_12_224 vit_tiny_patch16_224 vit_small_patch32_224
vit_relpos_small_patch16_224 vit_srelpos_small_patch16_224 vit_small_patch14_reg4_dinov2
vit_small_patch16_dinov3 vit_small_patch16_rope_mixed_224 vit_pwee_patch16_reg1_gap_256
vit_dwee_patch16_reg1_gap_256 vit_tiny_r_s16_p8_224 vit_xsmall_patch16_clip_224 vit_pe_core_tiny_patch16_384
flexivit_small deit_tiny_distilled_patch16_224 deit3_small_patch16_224 eva02_tiny_patch14_224 cait_xxs24_224
xcit_nano_12_p16_224 pit_ti_224 pit_ti_distilled_224 tnt_s_patch16_224 twins_pcpvt_small twins_svt_small
swin_tiny_patch4_window7_224 swin_s3_tiny_224 swinv2_tiny_window8_256 swinv2_cr_tiny_224 coat_tiny
coat_lite_tiny coatnet_nano_rw_224 coatnet_rmlp_nano_rw_224 coatnext_nano_rw_224 maxvit_pico_rw_256
maxxvit_rmlp_nano_rw_256 mvitv2_tiny nest_tiny_jx gcvit_xxtiny hiera_tiny_224 volo_d1_224 visformer_tiny
sequencer2d_s efficientvit_m0 vitamin_small_224 repvit_m0_9 swiftformer_xs convit_tiny mobilevit_xxs
mobilevitv2_050 test_vit test_vit4 test_coatnet test_byobnet
"""
)

#: Image sizes other than 64.
SIZES = {
    "bat_resnext26ts": 256,
    "halonet26t": 256,
    "lamhalobotnet50ts_256": 128,
    "haloregnetz_b": 224,
    "efficientformer_l1": 224,
    "inception_v3": 80,
    "vit_small_patch14_reg4_dinov2": 56,
    "eva02_tiny_patch14_224": 56,
}
TIMM = sorted({*CONVOLUTIONAL, *SIZED, *SIZES})

#: Networks of convolutions, BatchNorm, (leaky) ReLU and pooling: gradient × input is exact.
PIECEWISE_LINEAR = _words(
    """
resnet18 resnet50 resnetblur18 resnetaa34d resnet26t resnext50_32x4d res2net50_26w_4s regnetx_002 densenet121
densenetblur121d dla34 dla46_c dla60_res2net hrnet_w18_small vovnet39a dpn68 xception41 xception41p
legacy_xception resnetv2_18 selecsls42 cspresnet50 darknet17 gernet_s repvgg_a0 inception_v3 nf_resnet26
"""
)


def fill(model: nn.Module, seed: int = 0) -> nn.Module:
    """Change parameters at which relevance would vanish: zero heads, biases and gains, tiny weights."""
    generator = torch.Generator().manual_seed(seed)

    def noise(t: torch.Tensor) -> torch.Tensor:
        return torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype)

    for p in model.parameters():
        with torch.no_grad():
            if not p.is_floating_point() or p.numel() == 0:
                continue
            fan = p[0].numel() if p.ndim > 1 else 1
            if p.abs().max() < 1e-3:
                p.copy_(0.1 * noise(p))
            elif p.numel() > 1 and p.min() == p.max():
                p.mul_(1 + 0.2 * noise(p))
            elif p.ndim > 1 and 1e-3 < p.std() * fan**0.5 < 0.5:
                p.mul_(0.7 / (p.std() * fan**0.5))
    return model


def calibrate(model: nn.Module, x: torch.Tensor, seed: int = 0) -> nn.Module:
    """Running statistics of BatchNorm near those of the data, but not equal to them."""
    generator = torch.Generator().manual_seed(seed)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    norms = [m for m in norms if m.track_running_stats and m.running_mean is not None]
    for m in norms:
        m.reset_running_stats()
        m.momentum = None
        m.train()
    if not norms:
        return model
    with torch.no_grad():  # of two images alone some channel would have next to no variance
        model(torch.randn(8, *x.shape[1:], generator=generator, dtype=torch.float64).to(x.dtype))
        for m in norms:
            m.eval()
            noise = torch.randn(2, m.num_features, generator=generator, dtype=torch.float64).to(x.dtype)
            m.running_mean += 0.2 * m.running_var.sqrt() * noise[0]
            m.running_var *= 1 + 0.2 * noise[1].tanh()
    return model


def timm_model(name: str) -> tuple[nn.Module, torch.Tensor]:
    """The timm model of this name in float64, and two images."""
    import timm

    torch.manual_seed(0)
    size = SIZES.get(name, 64)
    fixed = name in SIZED or (name in SIZES and name != "inception_v3")
    model = timm.create_model(name, num_classes=CLASSES, **({"img_size": size} if fixed else {}))
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    return calibrate(fill(model.eval().double()), x), x


class Scores(nn.Module):
    """A model of transformers with a linear head on the mean token behind `skip`: (N, *sample) → (N, K)."""

    def __init__(self, body: nn.Module, call, x: torch.Tensor, skip: int = 0) -> None:
        super().__init__()
        self.body, self.call, self.skip = body, call, skip
        with torch.no_grad():
            self.head = nn.Linear(self.pooled(x).shape[-1], CLASSES)

    def pooled(self, x: torch.Tensor) -> torch.Tensor:
        h = self.call(self.body, x)
        h = h if isinstance(h, torch.Tensor) else h[0]
        return h.mean((2, 3)) if h.ndim == 4 else h[:, self.skip :].mean(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.pooled(x))


_S = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}
_M = {**_S, "intermediate_size": 64}
_L = {**_M, "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0}
_G = {"vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
_B = {"vocab_size": 50, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4}
_B |= {"decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
_V = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_V |= {"image_size": 32, "patch_size": 8}
_A = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_A |= {"conv_dim": [16, 16], "conv_stride": [5, 4], "conv_kernel": [8, 4], "num_feat_extract_layers": 2}
_A |= {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4, "vocab_size": 30}
_C = {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1]}
_W = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4]}
_W |= {"window_size": 4}
_D = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
_T5 = {"vocab_size": 50, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
_MB = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2}

#: Configurations by what they read; `inputs_embeds` (2, 8, 32) …
TEXT = {
    **dict.fromkeys(_words("Bert Roberta Nystromformer Ernie Data2VecText Esm Splinter IBert"), _M),
    **dict.fromkeys(_words("Persimmon MPNet FNet"), _M),
    "Electra": {**_M, "embedding_size": 32},
    "RoFormer": {**_M, "embedding_size": 32},
    "RemBert": {**_M, "input_embedding_size": 32},
    "Albert": {**_M, "embedding_size": 32},
    "SqueezeBert": {**_M, "embedding_size": 32},
    "ModernBert": {**_M, "pad_token_id": 0, "global_attn_every_n_layers": 2},
    "MobileBert": {
        **_M,
        "embedding_size": 32,
        "intra_bottleneck_size": 32,
        "num_feedforward_networks": 2,
    },
    "DistilBert": {"vocab_size": 50, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    "ConvBert": {**_M, "embedding_size": 32, "head_ratio": 2},
    "Deberta": {**_M, **_D},
    "DebertaV2": {**_M, **_D, "position_buckets": 8},
    "Funnel": {
        **{"vocab_size": 50, "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 64},
        **{"block_sizes": [1, 1], "num_decoder_layers": 1},
    },
    "XLNet": {"vocab_size": 50, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64},
    "XLM": {"vocab_size": 50, "emb_dim": 32, "n_layers": 2, "n_heads": 4},
    "Longformer": {**_M, "attention_window": 4, "max_position_embeddings": 64},
    "BigBird": {**_M, "attention_type": "original_full", "max_position_embeddings": 64},
    "GPT2": _G,
    "GPTJ": {**_G, "rotary_dim": 4},
    "CodeGen": {**_G, "rotary_dim": 4},
    "GPTNeo": {
        **{"vocab_size": 50, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 64},
        **{"attention_types": [[["global", "local"], 1]], "max_position_embeddings": 32},
    },
    "GPTNeoX": {**_M, "max_position_embeddings": 32},
    "OPT": {**_S, "ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 32},
    "XGLM": {
        **{"vocab_size": 50, "d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 64},
        **{"max_position_embeddings": 32},
    },
    "Bloom": {"vocab_size": 50, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "Falcon": _S,
    "Mpt": {"vocab_size": 50, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 32},
    **dict.fromkeys(_words("Llama Mistral Qwen2 StableLm Olmo Olmo2 Cohere Cohere2 Granite"), _L),
    **dict.fromkeys(_words("SmolLM3 Starcoder2 Nemotron Phi Phi3"), _L),
    **{name: {**_L, "head_dim": 8} for name in _words("Gemma Gemma2 Gemma3Text Qwen3 Glm Helium")},
    "Mixtral": {**_L, "num_local_experts": 4, "num_experts_per_tok": 2},
    "Qwen2Moe": {**_L, **_MOE, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32},
    "Olmoe": {**_L, **_MOE},
    "Mamba": _MB,
    "FalconMamba": _MB,
    "Mamba2": {**_MB, "num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 4},
    "Rwkv": {**_S, "attention_hidden_size": 32, "context_length": 32},
    "RecurrentGemma": {
        **{**_M, "lru_width": 32, "num_key_value_heads": 1, "head_dim": 8},
        **{"block_types": ["recurrent", "attention"], "attention_window_size": 8},
    },
    "Jamba": {
        **{**_M, "num_key_value_heads": 2, "num_experts": 2, "num_experts_per_tok": 1},
        **{"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2},
        **{"expert_layer_offset": 1, "use_mamba_kernels": False, "mamba_d_state": 4, "mamba_dt_rank": 4},
    },
}
#: … the encoder alone …
ENCODERS = {"T5": _T5, "MT5": _T5, "Bart": _B, "Pegasus": _B, "MBart": _B, "Blenderbot": _B}
#: … `pixel_values` (2, 3, 32, 32), or 64 …
IMAGES = {
    **dict.fromkeys(_words("ViT DeiT Dinov2 Dinov2WithRegisters DINOv3ViT Beit CLIPVision"), _V),
    **dict.fromkeys(_words("SiglipVision Data2VecVision ViTMSN IJepa"), _V),
    **dict.fromkeys(_words("Swin Swinv2 DonutSwin"), _W),
    **dict.fromkeys(_words("ConvNext ConvNextV2 PoolFormer"), _C),
    "ResNet": {**_C, "embedding_size": 8, "layer_type": "basic"},
    "RegNet": {**_C, "embedding_size": 8, "groups_width": 4},
    "Bit": {"embedding_size": 32, "hidden_sizes": [32] * 4, "depths": [1] * 4, "num_groups": 4},
    "Segformer": {
        **{"depths": [1, 1], "num_encoder_blocks": 2, "hidden_sizes": [8, 16], "sr_ratios": [2, 1]},
        **{"num_attention_heads": [1, 2], "patch_sizes": [7, 3], "strides": [4, 2], "mlp_ratios": [2, 2]},
    },
    "Pvt": {
        **{**_C, "image_size": 32, "num_encoder_blocks": 4, "sequence_reduction_ratios": [2, 2, 1, 1]},
        "num_attention_heads": [1, 2, 2, 2],
    },
    "Levit": {
        **{"image_size": 64, "hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 3, 4]},
        **{"depths": [1, 1, 1], "key_dim": [8, 8, 8]},
    },
    "MobileViT": {
        **{"hidden_sizes": [16] * 3, "neck_hidden_sizes": [8] * 6 + [16], "image_size": 32},
        "num_attention_heads": 2,
    },
    "MobileNetV1": {"depth_multiplier": 0.25, "image_size": 32},
    "MobileNetV2": {"depth_multiplier": 0.25, "image_size": 32},
    "Hiera": {
        **{"image_size": [32, 32], "patch_stride": [4, 4], "depths": [1, 1], "num_heads": [1, 2]},
        **{"embed_dim": 16, "num_query_pool": 1, "masked_unit_size": [4, 4]},
    },
    "FocalNet": {
        **{"image_size": 32, "embed_dim": 16, "hidden_sizes": [16, 32], "depths": [1, 1]},
        **{"focal_levels": [2, 2], "focal_windows": [3, 3]},
    },
}
#: … and sound: samples (2, 400) or spectrograms.
SOUND = {
    **dict.fromkeys(_words("Wav2Vec2 Hubert WavLM UniSpeech Data2VecAudio"), _A),
    "SEW": {**_A, "squeeze_factor": 2},
    "AST": {
        **{**_V, "frequency_stride": 8, "time_stride": 8, "max_length": 32},
        "num_mel_bins": 16,
    },
    "Whisper": {
        **{**_B, "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 16},
        **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1},
    },
}
#: Configurations tried once more with a left-padded batch.
PADDED = _words("Bert Roberta DebertaV2 XLNet GPT2 GPTNeoX OPT Bloom Falcon Mpt Llama Qwen2 Gemma2 Mamba T5")
#: Models whose operations or masks know no float64.
FLOAT32 = {"XGLM", "Mixtral", "Qwen2Moe", "Olmoe", "Jamba", "Bloom padded", "Mpt padded", "Gemma2 padded"}
TRANSFORMERS = [*TEXT, *ENCODERS, *IMAGES, *SOUND, *(f"{name} padded" for name in PADDED)]


def _named(argument: str, body: nn.Module, x: torch.Tensor, **more: torch.Tensor):
    return body(**{argument: x}, **more)


def transformers_model(name: str) -> tuple[nn.Module, torch.Tensor]:
    """The transformers model of this configuration (in float64 if it can) with a linear head, and two inputs."""
    import transformers

    dtype = torch.float32 if name in FLOAT32 else torch.float64
    name, _, padded = name.partition(" ")
    options = next(table[name] for table in (TEXT, ENCODERS, IMAGES, SOUND) if name in table)
    torch.manual_seed(0)
    body = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**options))
    if name in ENCODERS or name == "Whisper":
        body = body.get_encoder()
    if name in TEXT or name in ENCODERS:
        argument, shape = "inputs_embeds", (2, 8, 32)
    elif name in IMAGES:
        size = options.get("image_size", 32)
        size = size[0] if isinstance(size, list) else size
        argument, shape = "pixel_values", (2, 3, size, size)
    else:
        argument = "input_features" if name == "Whisper" else "input_values"
        shape = {"AST": (2, 32, 16), "Whisper": (2, 8, 32)}.get(name, (2, 400))
    more = {}
    if padded:
        mask = torch.ones(2, 8, dtype=torch.long)
        mask[0, :3] = 0
        more["attention_mask"] = mask
    x = torch.randn(shape, dtype=dtype)
    model = (
        Scores(body.eval().to(dtype), partial(_named, argument, **more), x, 3 if padded else 0)
        .eval()
        .to(dtype)
    )
    return calibrate(fill(model), x), x
