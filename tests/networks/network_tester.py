# SPDX-License-Identifier: Apache-2.0
"""What every network must do. A network joins with a class of its own:

    class TestInfNet(NetworkTester, FeaturesTester, ExportTester):
        build = staticmethod(InfNet)
        maps = {"s_g": 1, "s_5": 1, "s_4": 1, "s_3": 1, "edge": 1}

Heavy networks join ``ExportTester`` in a class marked slow.
"""

from collections.abc import Callable

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.networks.utils import convert_to_onnx, convert_to_torchscript
from torch import nn

AXES = {0: "batch", 2: "height", 3: "width"}


class _Tester:
    build: Callable[[], nn.Module]
    in_channels = 1
    out_channels = 1
    stride = 32
    maps: dict[str, int]  # names and channels of the maps in training mode
    frozen: tuple[str, ...] = ()  # how the names of parameters begin that are not to learn

    @pytest.fixture
    def net(self) -> nn.Module:
        """The network after one step in training mode, so that its statistics are not the initial ones."""
        torch.manual_seed(0)
        net = self.build()
        with torch.no_grad():
            net.train()(self.images(2, 64, 64))
        return net.eval()

    def images(self, *shape: int) -> torch.Tensor:
        batch, height, width = shape
        return torch.rand(batch, self.in_channels, height, width, generator=torch.Generator().manual_seed(1))


class NetworkTester(_Tester):
    def test_evaluation_returns_one_finite_map(self, net):
        with torch.no_grad():
            prediction = net(self.images(2, 64, 96))
        assert isinstance(prediction, torch.Tensor)
        assert prediction.shape == (2, self.out_channels, 64, 96)
        assert prediction.dtype == torch.float32
        assert prediction.isfinite().all()

    def test_training_returns_named_maps_of_the_images_size(self, net):
        with torch.no_grad():
            maps = net.train()(self.images(2, 50, 64))
        assert {name: tuple(map_.shape) for name, map_ in maps._asdict().items()} == {
            name: (2, channels, 50, 64) for name, channels in self.maps.items()
        }

    def test_every_parameter_but_the_frozen_receives_a_gradient(self, net):
        # each map times its own noise: a plain sum has no gradient through a batch normalisation
        maps = net.train()(self.images(2, 64, 64))
        torch.manual_seed(2)
        sum((map_ * torch.randn_like(map_)).sum() for map_ in maps).backward()
        without = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert without == [name for name, p in net.named_parameters() if name.startswith(self.frozen)]

    @pytest.mark.parametrize(("height", "width"), [(70, 33), (31, 32), (1, 5)])
    def test_odd_sizes_are_padded_with_the_last_row_and_column(self, net, height, width):
        x = self.images(1, height, width)
        padded = F.pad(x, (0, -width % self.stride, 0, -height % self.stride), mode="replicate")
        with torch.no_grad():
            prediction, whole = net(x), net(padded)
        assert prediction.shape == (1, self.out_channels, height, width)
        torch.testing.assert_close(prediction, whole[..., :height, :width])

    def test_slices_of_a_batch_do_not_touch_each_other(self, net):
        x = self.images(3, 64, 64)
        with torch.no_grad():
            together, apart = net(x), torch.cat([net(x[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4)

    def test_state_saves_and_loads(self, net, tmp_path):
        torch.save(net.state_dict(), tmp_path / "weights.pt")
        torch.manual_seed(3)
        other = self.build().eval()
        x = self.images(1, 64, 64)
        with torch.no_grad():
            assert not torch.equal(other(x), net(x))
            other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
            assert torch.equal(other(x), net(x))

    def test_channels_last_changes_nothing(self, net):
        x = self.images(2, 64, 64)
        with torch.no_grad():
            plain = net(x)
            last = net.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(last, plain, rtol=1e-3, atol=1e-4)

    def test_bfloat16_autocast_trains_and_stays_near_float32(self, net):
        x = self.images(2, 64, 64)
        with torch.no_grad():
            exact = net(x)
            with torch.autocast("cpu", torch.bfloat16):
                rough = net(x)
        assert (rough - exact).abs().mean() < 0.1 * exact.abs().mean()
        with torch.autocast("cpu", torch.bfloat16):
            maps = net.train()(x)
        sum(map_.float().square().mean() for map_ in maps).backward()
        assert all(p.grad.isfinite().all() for n, p in net.named_parameters() if not n.startswith(self.frozen))

    def test_takes_metatensors(self, net):
        x = self.images(1, 40, 40)
        with torch.no_grad():
            torch.testing.assert_close(torch.as_tensor(net(MetaTensor(x))).as_subclass(torch.Tensor), net(x))

    @pytest.mark.parametrize("shape", [(1, "one channel more", 32, 32), (1, 32, 32), (32, 32)])
    def test_other_shapes_are_refused(self, net, shape):
        shape = [self.in_channels + 1 if size == "one channel more" else size for size in shape]
        with pytest.raises(ValueError, match=r"shape \[.*wants \(B, \d, H, W\)"):
            net(torch.zeros(shape))


class FeaturesTester(_Tester):
    @pytest.mark.parametrize(("height", "width"), [(64, 96), (70, 33)])
    def test_features_have_the_declared_channels_at_the_coarsest_stride(self, net, height, width):
        with torch.no_grad():
            features = net.features(self.images(2, height, width))
        rows, columns = -(-height // self.stride), -(-width // self.stride)
        assert features.shape == (2, net.feature_channels, rows, columns)

    def test_features_are_on_the_way_to_the_prediction(self, net):
        x = self.images(2, 64, 64)
        seen = []
        hooks = [
            module.register_forward_hook(lambda module, inputs, output: seen.append(output)) for module in net.modules()
        ]
        with torch.no_grad():
            net(x)
        for hook in hooks:
            hook.remove()
        with torch.no_grad():
            features = net.features(x)
        assert any(isinstance(output, torch.Tensor) and torch.equal(output, features) for output in seen)

    def test_features_of_other_shapes_are_refused(self, net):
        with pytest.raises(ValueError, match=r"shape \[.*wants \(B, \d, H, W\)"):
            net.features(torch.zeros(1, self.in_channels + 1, 32, 32))


class ExportTester(_Tester):
    def set_training(self, script: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
        return script.train()

    def test_torchscript_gives_the_same_in_both_modes(self, net, tmp_path):
        convert_to_torchscript(
            net,
            str(tmp_path / "net.ts"),
            verify=True,
            inputs=[self.images(2, 64, 64)],
            device=torch.device("cpu"),
            atol=1e-5,
        )
        script = torch.jit.load(tmp_path / "net.ts")
        x = self.images(1, 70, 45)
        with torch.no_grad():
            torch.testing.assert_close(script(x), net(x))
            for ours, theirs in zip(net.train()(x), self.set_training(script)(x), strict=True):
                torch.testing.assert_close(theirs, ours)

    @pytest.mark.slow
    def test_traces(self, net):
        with torch.no_grad():
            traced = torch.jit.trace(net, self.images(1, 64, 64))
            x = self.images(2, 70, 45)
            torch.testing.assert_close(traced(x), net(x))

    def test_onnx_from_a_trace_takes_any_batch_and_size(self, net, tmp_path):
        self._check_onnx(net, tmp_path, use_trace=True, dynamo=False)

    @pytest.mark.slow
    def test_onnx_as_the_bundle_command_exports_it(self, net, tmp_path):
        self._check_onnx(net, tmp_path, use_trace=False)

    def _check_onnx(self, net, folder, **kwargs):
        convert_to_onnx(
            net,
            [self.images(2, 64, 96)],
            input_names=["image"],
            output_names=["pred"],
            dynamic_axes={"image": AXES, "pred": AXES},
            filename=str(folder / "net.onnx"),
            **kwargs,
        )
        session = onnxruntime.InferenceSession(str(folder / "net.onnx"), providers=["CPUExecutionProvider"])
        for x in (self.images(2, 64, 96), self.images(1, 70, 45), self.images(3, 32, 32)):
            with torch.no_grad():
                expected = net(x).numpy()
            (found,) = session.run(["pred"], {"image": x.numpy()})
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)

    @pytest.mark.slow
    def test_torch_export_takes_any_batch_and_multiple_of_32(self, net):
        dim = torch.export.Dim
        sizes = {0: dim("batch"), 2: 32 * dim("rows", min=2, max=64), 3: 32 * dim("columns", min=2, max=64)}
        program = torch.export.export(net, (self.images(2, 64, 96),), dynamic_shapes=(sizes,)).module()
        x = self.images(1, 128, 64)
        with torch.no_grad():
            torch.testing.assert_close(program(x), net(x))
