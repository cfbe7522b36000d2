"""A network of transformers compressed without training, and its .pcn file as a `PreTrainedModel`.

    pip install transformers
    python examples/elsewhere/hugging_face.py

`save_pretrained` writes config.json and network.pcn, `from_pretrained` reads them: pipelines, evaluation and whatever
else takes a `PreTrainedModel` take it. Its weights are those of the file; it is not trained further.
"""

import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, ViTConfig, ViTForImageClassification
from transformers.modeling_outputs import ImageClassifierOutput

import pyro_compress as pc


class PcnConfig(PretrainedConfig):
    """Names of the classes; everything else stands in the file."""

    model_type = "pyro-compress"


class PcnForImageClassification(PreTrainedModel):
    """A compressed network behind the face of transformers."""

    config_class = PcnConfig
    main_input_name = "pixel_values"

    def __init__(self, config: PcnConfig, file: Path):
        super().__init__(config)
        self.data, self.network = file.read_bytes(), pc.load(file)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> ImageClassifierOutput:
        """Logits, and their cross entropy where labels are given."""
        logits = self.network(pixel_values)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)

    def save_pretrained(self, save_directory: str | Path, **_: object) -> None:
        """Write config.json and network.pcn."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.config.save_pretrained(folder)
        (folder / "network.pcn").write_bytes(self.data)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **_: object) -> "PcnForImageClassification":
        """Read them; nothing is unpickled."""
        return cls(PcnConfig.from_pretrained(folder), Path(folder) / "network.pcn")


class Logits(nn.Module):
    """A classifier of transformers, whose outputs are its logits alone: what `pc.trained` takes."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(n, classes)`."""
        return self.model(pixel_values=x).logits


def small_vit(epochs: int) -> ViTForImageClassification:
    """A transformer on the embedded digits, trained as one trains them."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, image_size=8, patch_size=4,
        num_channels=1, num_labels=10,
    )  # fmt: skip
    model, train = ViTForImageClassification(config), pc.load_splits("digits").train
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(train)).split(64):
            optimizer.zero_grad()
            model(pixel_values=train.x[rows], labels=train.y[rows]).loss.backward()
            optimizer.step()
    return model.eval()


def main(folder: Path, epochs: int = 40) -> None:
    """Train, compress, save, load, compare."""
    splits, model = pc.load_splits("digits"), small_vit(epochs)
    small = pc.trained(Logits(model), splits).compress(tolerance=0.01)
    print(small)
    config = PcnConfig(id2label=dict(enumerate(map(str, range(10)))), num_labels=10)
    PcnForImageClassification(config, small.save(folder / "digits.pcn")).save_pretrained(folder / "digits")
    back = PcnForImageClassification.from_pretrained(folder / "digits")
    x, y = splits.test.x, splits.test.y
    with torch.no_grad():
        error = {name: 1 - float((one(x).logits.argmax(1) == y).float().mean()) for name, one in
                 (("given", model), ("from the file", back))}  # fmt: skip
    print(", ".join(f"test error {name} {number:.2%}" for name, number in error.items()))
    print(sum(path.stat().st_size for path in (folder / "digits").iterdir()), "bytes in the folder")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as place:
            main(Path(place))
