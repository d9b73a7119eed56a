import torch

from lens.model_specs import import_torchvision

torch.set_num_threads(1)
# Before anything imports transformers or timm, which import torchvision.
import_torchvision()
