"""The models of the gallery: name -> family and a function that gives model, arguments, keyword arguments.

Weights are random; inputs are small where the model allows it, since the picture does not depend on them.
"""

import torch
from small_models import SMALL_MODELS
from torch import nn

from lens.model_specs import import_torchvision

vision = import_torchvision().models


def image(name, size=64, **options):
    return lambda: (vision.get_model(name, weights=None, **options), (torch.randn(1, 3, size, size),), {})


def video(name):
    return lambda: (vision.get_model(name, weights=None), (torch.randn(1, 3, 8, 64, 64),), {})


def pytorch_image_model(name, size=None):
    def make():
        import timm

        model = timm.create_model(name, pretrained=False)
        side = size or model.default_cfg["input_size"][-1]
        return model, (torch.randn(1, 3, side, side),), {}

    return make


def transformer(name, *inputs, **options):
    def make():
        from transformers import AutoConfig, AutoModel

        model = AutoModel.from_config(AutoConfig.for_model(name, **options))
        return model, (), {key: torch.randint(0, 50, (1, 8)) for key in inputs or ("input_ids",)}

    return make


def vision_transformer(name, size, **options):
    def make():
        from transformers import AutoConfig, AutoModel

        model = AutoModel.from_config(AutoConfig.for_model(name, **options))
        return model, (), {"pixel_values": torch.randn(1, 3, size, size)}

    return make


def speech(name, **options):
    def make():
        from transformers import AutoConfig, AutoModel

        return AutoModel.from_config(AutoConfig.for_model(name, **options)), (torch.randn(1, 4000),), {}

    return make


def detector(name):
    return lambda: (vision.get_model(name, weights=None, weights_backbone=None), ([torch.rand(3, 96, 96)],), {})


def segmenter(name):
    return lambda: (
        vision.get_model(name, weights=None, weights_backbone=None),
        (torch.randn(1, 3, 96, 96),),
        {},
    )


def sequence(module, *shapes):
    return lambda: (module(), tuple(torch.randn(shape) for shape in shapes), {})


_SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}

FAMILIES = {
    "image classification (torchvision)": {
        "alexnet": image("alexnet"),
        "vgg11": image("vgg11"),
        "vgg16_bn": image("vgg16_bn"),
        "resnet18": image("resnet18"),
        "resnet50": image("resnet50"),
        "resnext50_32x4d": image("resnext50_32x4d"),
        "wide_resnet50_2": image("wide_resnet50_2"),
        "densenet121": image("densenet121"),
        "googlenet": image("googlenet", 96, init_weights=False, aux_logits=False),
        "inception_v3": image("inception_v3", 128, init_weights=False, aux_logits=False),
        "mobilenet_v2": image("mobilenet_v2"),
        "mobilenet_v3_small": image("mobilenet_v3_small"),
        "efficientnet_b0": image("efficientnet_b0"),
        "efficientnet_v2_s": image("efficientnet_v2_s"),
        "mnasnet0_5": image("mnasnet0_5"),
        "regnet_y_400mf": image("regnet_y_400mf"),
        "shufflenet_v2_x1_0": image("shufflenet_v2_x1_0"),
        "squeezenet1_1": image("squeezenet1_1"),
        "convnext_tiny": image("convnext_tiny"),
        "vit_b_16": image("vit_b_16", 224),
        "swin_t": image("swin_t"),
        "swin_v2_b": image("swin_v2_b"),
        "maxvit_t": image("maxvit_t", 224),
    },
    "image classification (timm)": {
        "convnext_atto": pytorch_image_model("convnext_atto", 64),
        "edgenext_xx_small": pytorch_image_model("edgenext_xx_small", 64),
        "ghostnet_100": pytorch_image_model("ghostnet_100", 64),
        "hrnet_w18_small": pytorch_image_model("hrnet_w18_small", 64),
        "mixer_s32_224": pytorch_image_model("mixer_s32_224"),
        "deit_tiny_patch16_224": pytorch_image_model("deit_tiny_patch16_224"),
        "mobilevit_xxs": pytorch_image_model("mobilevit_xxs", 64),
        "poolformer_s12": pytorch_image_model("poolformer_s12", 64),
        "res2net50_26w_4s": pytorch_image_model("res2net50_26w_4s", 64),
        "rexnet_100": pytorch_image_model("rexnet_100", 64),
        "dla34": pytorch_image_model("dla34", 64),
        "nfnet_l0": pytorch_image_model("nfnet_l0", 64),
    },
    "detection, segmentation, video": {
        "fcn_resnet50": segmenter("fcn_resnet50"),
        "deeplabv3_mobilenet_v3_large": segmenter("deeplabv3_mobilenet_v3_large"),
        "lraspp_mobilenet_v3_large": segmenter("lraspp_mobilenet_v3_large"),
        "retinanet_resnet50_fpn": detector("retinanet_resnet50_fpn"),
        "r3d_18": video("r3d_18"),
        "r2plus1d_18": video("r2plus1d_18"),
        "mc3_18": video("mc3_18"),
        "swin3d_t": video("swin3d_t"),
    },
    "language and speech (transformers)": {
        "gpt2": transformer("gpt2", n_layer=4, n_embd=64, n_head=4),
        "bert": transformer("bert", **_SMALL),
        "distilbert": transformer("distilbert", n_layers=2, dim=64, hidden_dim=128, n_heads=4),
        "albert": transformer("albert", embedding_size=32, **_SMALL),
        "electra": transformer("electra", **_SMALL),
        "llama": transformer("llama", num_key_value_heads=2, **_SMALL),
        "mistral": transformer("mistral", num_key_value_heads=2, **_SMALL),
        "opt": transformer("opt", hidden_size=64, num_hidden_layers=2, num_attention_heads=4, ffn_dim=128),
        "t5": transformer(
            "t5", "input_ids", "decoder_input_ids", num_layers=2, d_model=64, num_heads=4, d_kv=16, d_ff=99
        ),
        "mamba": transformer("mamba", hidden_size=64, num_hidden_layers=2),
        "dinov2": vision_transformer("dinov2", 56, hidden_size=48, num_hidden_layers=2, num_attention_heads=4),
        "wav2vec2": speech("wav2vec2", **_SMALL),
    },
    "recurrent and dynamic": {
        "lstm": sequence(lambda: nn.LSTM(4, 8, 2), (5, 2, 4)),
        "transformer": sequence(lambda: nn.Transformer(16, 2, 1, 1, 32), (5, 1, 16), (4, 1, 16)),
        **SMALL_MODELS,
    },
}
