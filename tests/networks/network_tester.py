# SPDX-License-Identifier: Apache-2.0
"""What every network must do. A network joins with a class of its own:

    class TestInfNet(NetworkTester, ExportTester):
        build = staticmethod(InfNet)

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
        assert len(maps._fields) == len(maps) > 1
        assert all(map_.shape == (2, self.out_channels, 50, 64) for map_ in maps)

    def test_every_parameter_receives_a_gradient(self, net):
        # each map times its own noise: a plain sum has no gradient through a batch normalisation
        maps = net.train()(self.images(2, 64, 64))
        torch.manual_seed(2)
        sum((map_ * torch.randn_like(map_)).sum() for map_ in maps).backward()
        without = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert without == []

    @pytest.mark.parametrize(("height", "width"), [(70, 33), (31, 32), (1, 5)])
    def test_odd_sizes_are_padded_with_the_last_row_and_column(self, net, height, width):
        x = self.images(1, height, width)
        padded = F.pad(x, (0, -width % 32, 0, -height % 32), mode="replicate")
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
        assert all(p.grad.isfinite().all() for p in net.parameters())

    def test_takes_metatensors(self, net):
        x = self.images(1, 40, 40)
        with torch.no_grad():
            torch.testing.assert_close(torch.as_tensor(net(MetaTensor(x))).as_subclass(torch.Tensor), net(x))

    @pytest.mark.parametrize("shape", [(1, 2, 32, 32), (1, 32, 32), (32, 32)])
    def test_other_shapes_are_refused(self, net, shape):
        with pytest.raises(ValueError, match=r"shape \[.*wants \(B, \d, H, W\)"):
            net(torch.zeros(shape))


class ExportTester(_Tester):
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
            for ours, theirs in zip(net.train()(x), script.train()(x), strict=True):
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
