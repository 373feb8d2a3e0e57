"""Make the golden values of the network tests with torch: ``python -m tests.golden.make_golden``.

Needs torch and torchvision (2.13.0 and 0.28.0 were used), and nothing of this project. The tests
need neither; they only read ``networks.npz``.
"""

import pathlib
import sys
import types

import numpy as np

from tests.golden.random_weights import (
    LSTM,
    RESNEXT_INFERENCE,
    RESNEXT_TRAINING,
    STAGES,
    entry,
    sample,
    uniform,
)

FILE = pathlib.Path(__file__).with_name("networks.npz")


def resnext_values():
    """Samples of every stage in inference and training, and of the statistics after a step."""
    import torch

    # The wheel of torchvision looks for compiled operators that its models do not need.
    sys.modules["torchvision._meta_registrations"] = types.ModuleType("_meta_registrations")
    import torchvision

    network = torchvision.models.resnext50_32x4d()
    weights = {k: entry(k, tuple(v.shape)) for k, v in network.state_dict().items()}
    network.load_state_dict({k: torch.from_numpy(np.asarray(v)) for k, v in weights.items()})
    values = {"resnext/entries": np.asarray(len(weights))}
    hooks = dict(zip(STAGES, ("maxpool", *STAGES[1:5], "avgpool", "fc"), strict=True))
    for stage, module in hooks.items():

        def keep(_, __, output, stage=stage):
            mode = "training" if network.training else "inference"
            values[f"resnext/{mode}/{stage}"] = sample(to_nhwc(output.numpy(), stage))

        getattr(network, module).register_forward_hook(keep)
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):

            def count(module, inputs, name=name):
                if module.training:
                    values[f"resnext/count/{name}"] = np.asarray(inputs[0].numel())
                    values[f"resnext/count/{name}"] //= inputs[0].shape[1]

            module.register_forward_pre_hook(count)
    with torch.no_grad():
        for mode, shape in (("inference", RESNEXT_INFERENCE), ("training", RESNEXT_TRAINING)):
            network.train(mode == "training")
            network(torch.from_numpy(uniform(mode, shape).transpose(0, 3, 1, 2).copy()))
    for key, value in network.state_dict().items():
        if "running" in key:
            values[f"resnext/after/{key}"] = sample(value.numpy(), 16)
    return values


def to_nhwc(output, stage):
    """Torch's channels first to channels last."""
    if stage == "pool":
        return output[..., 0, 0]
    return output.transpose(0, 2, 3, 1) if output.ndim == 4 else output


def lstm_values():
    """The last outputs of torch's LSTM over two steps and a linear layer."""
    import torch

    lstm = torch.nn.LSTM(LSTM["inputs"], LSTM["hidden"], LSTM["layers"])
    linear = torch.nn.Linear(LSTM["hidden"], 3)
    with torch.no_grad():
        for prefix, module in (("lstm", lstm), ("linear", linear)):
            for name, parameter in module.named_parameters():
                values = uniform(f"{prefix}.{name}", tuple(parameter.shape))
                parameter.copy_(torch.from_numpy(values))
        steps = torch.from_numpy(uniform("steps", (2, LSTM["count"], LSTM["inputs"])))
        return {"lstm/outputs": linear(lstm(steps)[0][-1]).numpy()}


def main():
    """Write the file and say how large it is."""
    np.savez_compressed(FILE, **resnext_values(), **lstm_values())
    print(f"{FILE}: {FILE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
