"""Tasks without labels: what each puts before the encoder, and what a run of one leaves to others."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from test_contract import backward, batch
from tiny import METHOD_FILES, PATCHES, overrides, tiny

from da.cli import main
from da.config import UserError
from da.engine import checkpoint
from da.nets.pretext import FillingHead
from da.run import _initialise, train
from da.trainers import base
from da.trainers.base_pretext import squares
from da.trainers.inpainting import centre_hole, centre_side, random_holes
from da.trainers.jigsaw import SIDE, cut_tiles, own_normalised, permutation_set
from da.trainers.rotation import turned

TASKS = [method for method in base.methods() if base.find(method).Trainer.is_pretext]


@pytest.fixture
def make(gta5_root, cityscapes_root):
    return lambda name, *extra: base.build(tiny(METHOD_FILES.get(name, name), gta5_root, cityscapes_root, *extra))


def places(height: int, width: int) -> torch.Tensor:
    """An image that says where its pixels are: row, column, and row once more."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows, columns, rows]).float()[None]


class TestSquares:
    def test_all_that_fit_lie_side_by_side_in_the_middle(self):
        found = squares(places(50, 70), 32)
        assert found.shape == (2, 3, 32, 32)
        assert torch.equal(found[0, :2, 0, 0], torch.tensor([9.0, 3.0]))
        assert torch.equal(found[1, :2, 0, 0], torch.tensor([9.0, 35.0]))

    def test_images_in_their_order(self):
        both = torch.cat([torch.zeros(1, 3, 32, 64), torch.ones(1, 3, 32, 64)])
        assert squares(both, 32).mean((1, 2, 3)).tolist() == [0, 0, 1, 1]

    def test_too_small_an_image_is_refused_by_the_setting(self, make):
        with pytest.raises(UserError, match=r"method\.cell: asks for 81 pixels a side, of images of 64x48; lower it"):
            make("jigsaw", "method.cell=27").step(batch(), backward)


class TestRotation:
    def test_four_quarter_turns_are_none(self):
        image = torch.rand(2, 3, 8, 8)
        once = turned(image, 1)
        assert torch.equal(turned(turned(turned(once, 1), 1), 1), image)
        assert torch.equal(turned(image, 3), torch.rot90(image, 3, (2, 3)))
        assert torch.equal(turned(once, -1), image)

    def test_all_copies_of_a_patch_are_in_one_batch(self, make):
        trainer, seen = make("rotation"), []
        trainer.logits = lambda patches: seen.append(patches) or torch.eye(4).repeat_interleave(len(patches) // 4, 0)
        x = torch.rand(2, 3, 48, 64)
        loss, right = trainer.tell_turns(x)
        patches = squares(x, 32)
        assert torch.equal(seen[0], torch.cat([torch.rot90(patches, k, (2, 3)) for k in range(4)]))
        assert right == 1
        assert loss == pytest.approx(np.log(np.e + 3) - 1, abs=1e-6)


class TestJigsaw:
    @pytest.mark.parametrize(("number", "nearest"), [(10, 8), (64, 7), (100, 6)])
    def test_permutations_are_far_apart(self, number, nearest):
        found = permutation_set(number)
        assert found.shape == (number, 9)
        assert (np.sort(found, 1) == np.arange(9)).all()
        distance = (found[:, None] != found).sum(2)
        assert distance[~np.eye(number, dtype=bool)].min() >= nearest
        assert (found[: number // 2] == permutation_set(number // 2)).all()

    def test_tiles_come_from_their_cells_at_places_of_their_own(self):
        torch.manual_seed(0)
        tiles = cut_tiles(places(60, 60).expand(4, -1, -1, -1), cell=20, tile=12, shift=0)
        assert tiles.shape == (4, 9, 3, 12, 12)
        for place in range(9):
            top, left = 20 * (place // SIDE), 20 * (place % SIDE)
            rows, columns = tiles[:, place, 0], tiles[:, place, 1]
            assert rows.min() >= top
            assert rows.max() < top + 20
            assert columns.min() >= left
            assert columns.max() < left + 20
        assert torch.equal(tiles[:, :, 0], tiles[:, :, 2])
        assert len(tiles[:, :, 0, 0, 0].unique()) > 9
        assert (tiles[:, :, 0].diff(dim=2) == 1).all()
        assert (tiles[:, :, 1].diff(dim=3) == 1).all()

    def test_channels_shift_against_each_other(self):
        torch.manual_seed(0)
        tiles = cut_tiles(places(60, 60).expand(8, -1, -1, -1), cell=20, tile=12, shift=2)
        apart = (tiles[:, :, 0] - tiles[:, :, 2])[..., 0, 0]
        assert 2 < apart.abs().max() <= 4
        assert len(apart.unique()) > 4
        one_of_two = cut_tiles(places(60, 60).expand(2, -1, -1, -1), 20, 12, torch.tensor([0, 2]).view(2, 1, 1, 1, 1))
        assert torch.equal(one_of_two[0, :, 0], one_of_two[0, :, 2])
        assert not torch.equal(one_of_two[1, :, 0], one_of_two[1, :, 2])

    def test_a_grey_puzzle_has_no_colour(self, make):
        _, shown, _ = make("jigsaw", "method.grey=1").puzzles(torch.rand(2, 3, 48, 64))
        assert torch.allclose(shown[:, :, 0], shown[:, :, 2])

    def test_a_tile_is_normalised_by_itself_and_one_of_one_colour_is_zero(self):
        tiles = own_normalised(torch.cat([torch.full((1, 9, 3, 8, 8), 0.7), 0.2 + 0.1 * torch.rand(1, 9, 3, 8, 8)]))
        assert torch.allclose(tiles[0], torch.zeros(()), atol=1e-3)
        assert torch.allclose(tiles[1].mean((2, 3)), torch.zeros(()), atol=1e-5)
        assert torch.allclose(tiles[1].std((2, 3), unbiased=False), torch.ones(()), atol=1e-4)

    def test_the_puzzle_is_shuffled_as_its_number_says_and_put_back(self, make):
        trainer = make("jigsaw", "method.shift=0", "method.grey=0")
        torch.manual_seed(1)
        _, shown, p = trainer.puzzles(places(48, 64) / 64)
        order = permutation_set(20)[p.item()]
        where = (shown[0, :, 0].amax((1, 2)) * 64 - 3).div(14, rounding_mode="floor") * SIDE
        where += (shown[0, :, 1].amax((1, 2)) * 64 - 11).div(14, rounding_mode="floor")
        assert where.int().tolist() == order.tolist()
        trainer.logits = lambda tiles: torch.nn.functional.one_hot(p, 20).float()
        torch.manual_seed(1)
        _, _, back = trainer.illustrate(places(48, 64) / 64)
        assert (back[0, 0].where(back[0, 0] < 1, -1).amax(1)[7::14].diff() > 0).all()

    def test_a_tile_larger_than_its_cell_is_refused(self, make):
        with pytest.raises(UserError, match=r"method.tile=20 does not fit into method.cell=14"):
            make("jigsaw", "method.tile=20")


class TestInpainting:
    def test_the_hole_has_the_share_that_is_asked_for(self):
        x = torch.zeros(3, 3, 40, 40)
        centre = centre_hole(x, centre_side(40, 0.25))
        assert centre.shape == (3, 1, 40, 40)
        assert centre.float().mean() == 0.25
        assert centre[0, 0, 10:30, 10:30].all()
        for share in (0.1, 0.25, 0.6):
            holes = random_holes(x, share)
            assert torch.allclose(holes.float().mean((1, 2, 3)), torch.tensor(share), atol=1e-3)
            assert not torch.equal(holes[0], holes[1])

    @pytest.mark.parametrize("mask", ["centre", "random"])
    def test_the_picture_is_kept_outside_and_only_the_hole_counts(self, make, mask):
        trainer = make("inpainting", f"method.mask={mask}")
        x = torch.rand(2, 3, 32, 32)
        hole = trainer.holes(x)
        filled = trainer.fill(x, hole)
        assert torch.equal(filled.where(~hole, 0), x.where(~hole, 0))
        missing = trainer.missing(hole)
        assert torch.allclose(trainer.shown(x, hole)[0][:, missing[0, 0]].T, trainer.network.mean)
        assert torch.equal(trainer.shown(x, hole).where(~missing, 0), x.where(~missing, 0))
        error = trainer.error(x, filled, hole)
        assert torch.equal(error, trainer.error(torch.where(hole, x, 0.5), torch.where(hole, filled, 0.9), hole))
        assert trainer.error(x, x, hole) == 0

    def test_the_band_along_the_edge_is_shown_and_counts_ten_times(self, make):
        trainer = make("inpainting", "method.overlap=2")
        x = torch.zeros(1, 3, 32, 32)
        hole = trainer.holes(x)  # 16 a side, 12 without the band
        assert torch.equal(trainer.missing(hole), centre_hole(x, 12))
        inner = torch.zeros_like(x)
        inner[..., 10:22, 10:22] = 0.5  # wrong by 1 in [-1, 1]
        everywhere = torch.where(hole, 0.5, x)
        assert trainer.error(x, inner, hole) == pytest.approx(144 / 256)
        assert trainer.error(x, everywhere, hole) == pytest.approx((144 + 10 * (256 - 144)) / 256)

    @pytest.mark.parametrize(
        ("setting", "said"),
        [
            ("method.overlap=8", "method.overlap=8: two bands of it leave nothing of the hole; method.patch=32"),
            ("method.overlap=2000000000", "method.overlap: "),
            ("method.patch=15", "method.patch: 15 pixels are less than two cells of the encoder; raise it"),
        ],
    )
    def test_what_leaves_nothing_to_draw_is_refused(self, make, setting, said):
        with pytest.raises(UserError, match=said):
            make("inpainting", "method.overlap=1", setting)

    @pytest.mark.parametrize("backbone", ["timm/vit_tiny_patch16_224", "timm/tf_efficientnet_lite0"])
    def test_other_encoders_draw_the_patch_at_its_size(self, make, backbone):
        pytest.importorskip("timm")
        trainer = make("inpainting", f"model.backbone={backbone}", "method.patch=40")
        x = torch.rand(2, 3, 40, 40)
        assert trainer.fill(x, trainer.holes(x)).shape == x.shape

    def test_a_stride_that_is_no_power_of_two(self):
        assert FillingHead(6, 14, 16)(torch.rand(2, 6, 3, 4)).shape == (2, 3, 42, 56)

    def test_psnr_of_a_known_error(self, make):
        trainer = make("inpainting")
        trainer.fill = lambda x, hole: x + 0.1 * hole
        assert trainer.examine(torch.full((1, 3, 48, 64), 0.5))["psnr"] == pytest.approx(20, abs=1e-4)

    def test_gradients_reach_only_whom_they_should(self, make):
        trainer, seen = make("inpainting", "method.lambda_adv=1"), []

        def record(loss: torch.Tensor) -> None:
            loss.backward()
            sides = (trainer.network, trainer.d)
            seen.append([[None if p.grad is None else p.grad.clone() for p in s.parameters()] for s in sides])

        trainer.step(batch(), record)
        (g, d), (g_after, d_after) = seen
        assert all(grad is None for grad in d)
        assert any(grad is not None and grad.any() for grad in d_after)
        assert all(a is b or torch.equal(a, b) for a, b in zip(g, g_after))

    def test_without_an_adversary_there_is_none(self, make):
        trainer = make("inpainting", "method.lambda_adv=0")
        assert set(trainer.modules) == {"encoder"}
        assert set(trainer.step(batch(), backward)) == {"loss/rec"}


@pytest.mark.parametrize("name", TASKS)
class TestEveryTask:
    def test_figures_follow_from_image_and_seed(self, name, make):
        trainer = make(name)
        trainer.network.eval()
        image = torch.rand(1, 3, 60, 80)
        found = []
        for _ in range(2):
            torch.manual_seed(3)
            with torch.no_grad():
                found.append({key: value.item() for key, value in trainer.examine(image).items()})
        assert found[0] == found[1]
        assert trainer.score in found[0]
        rows = trainer.illustrate(image)
        assert len(rows) == len(trainer.example_titles)
        assert all(row.min() >= 0 and row.max() <= 1 for row in rows)

    def test_a_loss_section_is_refused(self, name, make):
        with pytest.raises(UserError, match=f"loss: {name} trains no segmenter"):
            make(name, "loss={lambda_dice: 0.1}")

    @pytest.mark.parametrize(
        ("setting", "said"),
        [
            ("model.bn=per_domain", "model.bn: {} has one stream of images for all domains; take train or sync"),
            ("eval.flip=true", "eval.flip: {} trains no segmenter; leave it out"),
        ],
    )
    def test_settings_of_segmenters_are_refused(self, name, setting, said, make):
        with pytest.raises(UserError, match=said.format(name)):
            make(name, setting)

    @pytest.mark.slow
    def test_a_run_opens_no_label_and_others_start_from_it(
        self, name, make, tmp_path, gta5_root, cityscapes_root, capsys
    ):
        shutil.rmtree(gta5_root / "labels")
        shutil.rmtree(cityscapes_root / "gtFine")
        run = train(tiny(METHOD_FILES[name], gta5_root, cityscapes_root), tmp_path / "runs")
        score = base.find(name).Trainer.score
        summary = json.loads((run / "summary.json").read_text())
        assert summary["is_pretext"]
        assert summary["best"].keys() == {"step", f"val/{score}"}
        said = capsys.readouterr().out
        assert f"{name}-seed0, step 4, on 3 held-out images: {score} {summary['scores'][score]:.4g}" in said

        trained = checkpoint.load(run / "checkpoints/last.pt")["modules"]["encoder"]
        for other in ("source_only", "finetune", *TASKS):
            trainer = make(other)
            fresh = _initialise(trainer, str(run))
            own = trainer.encoder.state_dict()
            assert all(torch.equal(own[key], trained[key]) for key in own.keys() - fresh)
            assert {key for key in own if key.startswith("backbone.")} <= own.keys() - fresh
        said = capsys.readouterr().out
        assert "heads begin anew: ppm, cls, aux" in said
        assert f"encoder starts from {run / 'checkpoints/last.pt'} (step 4)" in said

        for command in (["evaluate", str(run)], ["predict", str(run), str(gta5_root), "-o", str(tmp_path / "out")]):
            assert main(command) == 2
            assert f"{name} trained an encoder, no segmenter; start a run from it: init=" in capsys.readouterr().err
        assert main(["report", str(run), "-o", str(tmp_path / "page")]) == 2
        assert "trained an encoder, no segmenter; name runs that start from it" in capsys.readouterr().err
        with pytest.raises(UserError, match="holds an encoder, no segmenter; name a run that has trained one"):
            _initialise(make("cycada_pixel"), str(run))

    def test_a_task_starts_from_a_segmenter_too(self, name, tmp_path, gta5_root, cityscapes_root, make, capsys):
        segmenter = make("source_only").segmenter.state_dict()
        checkpoint.save(tmp_path / "s.pt", {"step": 7, "modules": {"segmenter": segmenter}})
        trainer = make(name)
        assert _initialise(trainer, str(tmp_path / "s.pt")) == {
            key for key in trainer.network.state_dict() if key.startswith("head.")
        }
        assert torch.equal(trainer.network.backbone.conv1.weight, segmenter["backbone.conv1.weight"])
        assert "heads begin anew: head" in capsys.readouterr().out


@pytest.mark.slow
def test_the_page_leaves_pretraining_out_and_says_so(tmp_path, gta5_root, cityscapes_root, capsys):
    words = overrides(gta5_root, cityscapes_root)
    runs = ["--runs", str(tmp_path)]
    assert main(["train", "experiments/mini/rotation.yaml", *words, *PATCHES["rotation"], *runs]) == 0
    init = f"init={tmp_path}/mini/rotation-seed0"
    assert main(["train", "experiments/mini/source_only.yaml", *words, init, *runs]) == 0
    assert main(["report", "--table", "mini", *runs, "-o", str(tmp_path / "page"), "--pictures", "0"]) == 0
    assert "rotation-seed0: left out: it trained an encoder, no segmenter" in capsys.readouterr().out
    table = (tmp_path / "page/table.md").read_text()
    assert "source_only" in table
    assert "rotation" not in table


def test_held_out_images_have_the_size_that_the_evaluation_asks_for(tmp_path, gta5_root, cityscapes_root, make):
    seen = []
    trainer = base.find("rotation").Trainer
    plain = trainer.examine

    def recording(self, image):
        seen.append(tuple(image.shape))
        return plain(self, image)

    trainer.examine = recording
    try:
        train(tiny("rotation", gta5_root, cityscapes_root, "eval.input_size=[64, 40]"), tmp_path)
    finally:
        trainer.examine = plain
    assert set(seen) == {(1, 3, 40, 64)}


def test_a_held_out_image_that_is_too_small_is_named_before_the_first_update(tmp_path, gta5_root, cityscapes_root):
    small = sorted((cityscapes_root / "leftImg8bit/val").rglob("*.png"))[-1]
    Image.fromarray(np.zeros((20, 64, 3), np.uint8)).save(small)
    with pytest.raises(UserError, match=f"data.val: {small}: method.patch: asks for 32 pixels a side, of"):
        train(tiny("rotation", gta5_root, cityscapes_root), tmp_path)
    assert not list(tmp_path.rglob("checkpoints/*.pt"))
