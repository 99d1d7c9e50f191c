"""The ONNX file gives PyTorch's logits at any batch and size."""

import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from city import NUM_CLASSES
from tiny import tiny

from da.cli import main
from da.evaluation.infer import upsample
from da.export import _compare, _MatrixPool, _replace_pools
from da.nets.pooling import AdaptiveAvgPool2d
from da.nets.pspnet import PSPNet, PSPNetConfig
from da.run import checkpoint_path, restore, train


@pytest.fixture
def run(tmp_path, gta5_root, cityscapes_root):
    return train(tiny("source_only", gta5_root, cityscapes_root, "run.steps=1"), tmp_path / "runs")


@pytest.mark.slow
@pytest.mark.parametrize("size", [None, (96, 64)])
def test_logits_equal(size, run, tmp_path, capsys):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    out = tmp_path / "model.onnx"
    assert main(["export", str(run), str(out), *(["--size", *map(str, size)] if size else [])]) == 0
    assert "logits differ" in capsys.readouterr().out
    _, trainer, _ = restore(checkpoint_path(run, "last"))
    trainer.segmenter.eval()
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    for batch, height, width in ((1, 64, 96), (3, 64, 96), *([] if size else [(2, 71, 133)])):
        image = torch.rand(batch, 3, height, width)
        with torch.no_grad():
            expected = upsample(trainer.predict(image), (height, width)).numpy()
        (found,) = session.run(None, {"image": image.numpy()})
        assert found.shape == (batch, 19, height, width)
        assert np.abs(found - expected).max() < 1e-4 * max(1, np.abs(expected).max())


def test_a_file_that_differs_leaves_the_one_that_was_there(run, tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")

    class Other:
        model = mock.Mock(metadata_props={}, graph=mock.Mock(inputs=[mock.Mock(shape=["b", 3, "h", "w"])]))

        def save(self, name, **_):
            Path(name).write_bytes(b"other")

    def differ(path, *_):
        assert path.read_bytes() == b"other"
        raise RuntimeError("logits differ")

    out = tmp_path / "model.onnx"
    out.write_bytes(b"good")
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: Other())
    monkeypatch.setattr("da.export._compare", differ)
    with pytest.raises(RuntimeError, match="logits differ"):
        main(["export", str(run), str(out)])
    assert out.read_bytes() == b"good"
    assert [path.name for path in tmp_path.glob("model*")] == ["model.onnx"]


def test_logits_that_are_no_numbers_differ(tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    nan = torch.full((1, 2), float("nan"))
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: Session())
    with pytest.raises(RuntimeError, match="differ from PyTorch's by up to nan"):
        _compare(tmp_path / "a.onnx", torch.zeros(1), nan)


class Session:
    def run(self, *_):
        return [np.zeros((1, 2), np.float32)]


@pytest.mark.parametrize("bins", [1, 2, 3, 6])
def test_pooling_by_matrices_is_adaptive_pooling(bins):
    for height, width in ((6, 7), (13, 29), (64, 128)):
        x = torch.rand(2, 3, height, width)
        assert torch.allclose(_MatrixPool(bins)(x), torch.nn.AdaptiveAvgPool2d(bins)(x), atol=1e-6)


def test_every_pool_of_the_segmenter_is_replaced():
    segmenter = PSPNet(PSPNetConfig(backbone="resnet18", head_channels=16, weights="none"), NUM_CLASSES).eval()
    image = torch.rand(2, 3, 71, 133)
    with torch.no_grad():
        expected = segmenter(image).main
        _replace_pools(segmenter)
        assert torch.allclose(segmenter(image).main, expected, atol=1e-5)
    assert not any(isinstance(module, AdaptiveAvgPool2d) for module in segmenter.modules())


def test_missing_package_is_one_line(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main(["export", str(run), str(tmp_path / "model.onnx")]) == 2
    assert "pip install" in capsys.readouterr().err
    assert main(["export", str(run), str(tmp_path / "model.onnx"), "--size", "8", "8"]) == 2
