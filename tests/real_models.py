"""Real models with random weights, and inputs for them: name -> a function that gives (model, args, kwargs)."""

import timm
import torch
from models import LSTMLoop
from torch import nn
from transformers import AutoConfig, AutoModel

from lens.model_specs import import_torchvision

vision = import_torchvision().models


def images(batch, size):
    return (torch.randn(batch, 3, size, size),)


def transformer(name, **options):
    return AutoModel.from_config(AutoConfig.for_model(name, **options))


def tokens(*names):
    ids = torch.randint(0, 100, (2, 12))
    return dict.fromkeys(names, ids)


def masked_encoder():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[0, 3:] = True
    return nn.TransformerEncoder(layer, 2), (torch.randn(2, 5, 16),), {"src_key_padding_mask": mask}


REAL_MODELS = {
    "resnet18": lambda: (vision.resnet18(), images(2, 64), {}),
    "densenet121": lambda: (vision.densenet121(), images(2, 64), {}),
    "vit_b_16": lambda: (vision.vit_b_16(image_size=64), images(2, 64), {}),
    "swin_t": lambda: (vision.swin_t(), images(1, 64), {}),
    "mobilenet_v3": lambda: (vision.mobilenet_v3_small(), images(2, 64), {}),
    "googlenet": lambda: (vision.googlenet(init_weights=False), images(2, 96), {}),
    "gpt2": lambda: (transformer("gpt2", n_layer=2, n_embd=64, n_head=4), (), tokens("input_ids")),
    "bert": lambda: (
        transformer("bert", num_hidden_layers=2, hidden_size=64, num_attention_heads=4, intermediate_size=128),
        (),
        tokens("input_ids"),
    ),
    "t5": lambda: (
        transformer("t5", num_layers=2, d_model=64, num_heads=4, d_kv=16, d_ff=128),
        (),
        tokens("input_ids", "decoder_input_ids"),
    ),
    "convnext": lambda: (timm.create_model("convnext_atto"), images(2, 64), {}),
    "efficientnet": lambda: (timm.create_model("efficientnet_b0"), images(2, 64), {}),
    "edgenext": lambda: (timm.create_model("edgenext_xx_small"), images(1, 64), {}),
    "lstm": lambda: (nn.LSTM(4, 8, 2, dropout=0.2), (torch.randn(5, 2, 4),), {}),
    "lstm_cell_loop": lambda: (LSTMLoop(), (torch.randn(5, 2, 4),), {}),
    "masked_encoder": masked_encoder,
}
