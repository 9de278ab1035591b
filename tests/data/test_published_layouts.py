"""VisA, Real-IAD, COCO, YOLO, MVTec LOCO and Hugging Face data sets, in the form in which they are published."""

import json

import cv2
import numpy as np
import pyarrow as pa
import pytest

from factories import picture, save
from pfungst.data import open_images
from pfungst.data.roles import for_detection
from pfungst.errors import DataError


def test_visa(tmp_path):
    rows = ["object,split,label,image,mask"]
    for category in ("candle", "pcb1"):
        for i in range(4):
            save(tmp_path / f"{category}/Data/Images/Normal/{i:04d}.JPG", picture(i)[0])
            split = "train" if i < 3 else "test"
            rows.append(f"{category},{split},normal,{category}/Data/Images/Normal/{i:04d}.JPG,")
        image, mask = picture(9, defect=True)
        save(tmp_path / f"{category}/Data/Images/Anomaly/000.JPG", image)
        save(tmp_path / f"{category}/Data/Masks/Anomaly/000.png", mask.astype(np.uint8) * 3)
        place = f"{category}/Data/Images/Anomaly/000.JPG,{category}/Data/Masks/Anomaly/000.png"
        rows.append(f"{category},test,anomaly,{place}")
        normal = [f"{category}/Data/Images/Normal/{i:04d}.JPG,normal," for i in range(4)]
        table = ["image,label,mask", *normal, place.replace(",", ",melded wax,")]
        (tmp_path / category / "image_anno.csv").write_text("\n".join(table) + "\n")
    (tmp_path / "split_csv").mkdir()
    (tmp_path / "split_csv/1cls.csv").write_text("\n".join(rows) + "\n")
    sets = open_images(tmp_path)
    assert [(s.name, s.layout, len(s)) for s in sets] == [("candle", "VisA", 5), ("pcb1", "VisA", 5)]
    assert for_detection(sets[0]).labels.tolist() == [0, 0, 0, 0, 1]
    assert sets[0][4].read_mask().sum() == picture(9, defect=True)[1].sum()
    assert [s.name for s in open_images(tmp_path, "pcb1")] == ["pcb1"]
    (one,) = open_images(tmp_path / "candle")
    assert (one.layout, one.classes[-1], one.splits.tolist()) == ("VisA", "melded wax", [""] * 5)


def test_real_iad(tmp_path):
    rows = {"train": [], "test": []}
    for k, (kind, split) in enumerate([("OK", "train"), ("OK", "train"), ("OK", "test"), ("AK", "test")]):
        place = f"{kind}/S{k:04d}/bolt_000{k}_{kind}_C{k % 2 + 1}_2023.jpg"
        save(tmp_path / f"realiad_256/bolt/{place}", picture(k)[0])
        mask = None
        if kind != "OK":
            mask = place.replace(".jpg", ".png")
            save(tmp_path / f"realiad_256/bolt/{mask}", picture(k, defect=True)[1].astype(np.uint8) * 255)
        rows[split].append(
            {"category": "bolt", "anomaly_class": kind, "image_path": place, "mask_path": mask}
        )
    (tmp_path / "realiad_jsons").mkdir()
    file = tmp_path / "realiad_jsons/bolt.json"
    file.write_text(json.dumps({"meta": {"normal_class": "OK", "prefix": "bolt/"}, **rows}))
    (images,) = open_images(tmp_path)
    assert (images.layout, images.name) == ("Real-IAD", "bolt")
    assert images.classes == ["good", "good", "good", "AK"]
    assert images.group("camera").tolist() == ["C1", "C2", "C1", "C2"]
    assert images.group("part").tolist() == ["S0000", "S0001", "S0002", "S0003"]
    assert images[3].read_mask().any()
    (tmp_path / "realiad_256/bolt" / images[0].id).unlink()
    with pytest.raises(DataError, match=r"1 files of .*bolt\.json do not exist"):
        open_images(tmp_path)


def coco(tmp_path, **more):
    for i in range(3):
        save(tmp_path / f"images/{i}.png", picture(i, (40, 30))[0])
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in range(3)],
        "annotations": [
            {"image_id": 1, "category_id": 7, "bbox": [4, 5, 10, 6], "segmentation": []},
            {"image_id": 2, "category_id": 7, "bbox": [0, 0, 2, 2]},
            {
                "image_id": 2,
                "category_id": 8,
                "bbox": [0, 0, 30, 20],
                "segmentation": [[5, 5, 25, 5, 25, 15, 5, 15.0]],
            },
        ],
        "categories": [{"id": 7, "name": "hole"}, {"id": 8, "name": "dent"}],
        **more,
    }
    (tmp_path / "annotations").mkdir(exist_ok=True)
    file = tmp_path / "annotations/instances.json"
    file.write_text(json.dumps(content))
    return file


def test_coco_boxes_and_polygons_are_masks(tmp_path):
    file = coco(tmp_path)
    for path in (tmp_path, file):
        (images,) = open_images(path)
        assert images.layout == "COCO"
        assert images.classes == ["good", "hole", "dent"]
        box = np.zeros((30, 40), bool)
        box[5:11, 4:14] = True
        np.testing.assert_array_equal(images[1].read_mask(), box)
        both = np.zeros((30, 40), np.uint8)
        both[:2, :2] = 1
        cv2.rectangle(both, (5, 5), (24, 14), 1, -1)
        np.testing.assert_array_equal(images[2].read_mask(), both.astype(bool))
    (tmp_path / "images/0.png").unlink()
    with pytest.raises(DataError, match=r"1 images of .* do not exist:\n +0\.png"):
        open_images(tmp_path)
    coco(tmp_path, categories=[])
    with pytest.raises(DataError, match="not as COCO has it: KeyError 7"):
        open_images(tmp_path)


def test_yolo_boxes_and_polygons_are_masks(tmp_path):
    for split, kind in (("train", "0"), ("val", "1")):
        for i in range(2):
            save(tmp_path / f"images/{split}/{i}.png", picture(i, (40, 20))[0])
        (tmp_path / f"labels/{split}").mkdir(parents=True)
        (tmp_path / f"labels/{split}/1.txt").write_text(f"{kind} 0.5 0.5 0.25 0.5\n")
    (tmp_path / "labels/train/0.txt").write_text("")
    (tmp_path / "data.yaml").write_text("names:\n  0: hole\n  1: dent\nnc: 2\n")
    (images,) = open_images(tmp_path)
    assert images.layout == "YOLO"
    assert [(i.split, i.label) for i in images.items] == [
        ("train", "good"),
        ("train", "hole"),
        ("validation", "good"),
        ("validation", "dent"),
    ]
    box = np.zeros((20, 40), bool)
    box[5:15, 15:25] = True
    np.testing.assert_array_equal(images[1].read_mask(), box)
    (tmp_path / "labels/train/1.txt").write_text("0 0.1 0.1 0.6 0.1 0.1 0.6\n")
    mask = open_images(tmp_path)[0][1].read_mask()
    assert mask.sum() == pytest.approx(0.5 * 20 * 10, rel=0.1)
    (tmp_path / "labels/train/1.txt").write_text("0 5 nan 1\n")
    with pytest.raises(DataError, match=r"1 lines are no boxes of YOLO:\n.*1\.txt, line 1"):
        open_images(tmp_path)


@pytest.mark.parametrize("several", [False, True])
def test_hugging_face_on_disk(tmp_path, several):
    """Arrow streams beside state.json and dataset_info.json, as save_to_disk of `datasets` lays them out."""
    data = [save(tmp_path / f"png/{i}.png", picture(i)[0]).read_bytes() for i in range(6)]
    parts = {"train": range(4), "test": range(4, 6)} if several else {"": range(6)}
    for split, rows in parts.items():
        folder = tmp_path / "set" / split
        folder.mkdir(parents=True)
        table = pa.table(
            {"image": [{"bytes": data[i], "path": f"{i}.png"} for i in rows], "label": [i % 2 for i in rows]}
        )
        with (
            pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as sink,
            pa.ipc.new_stream(sink, table.schema) as writer,
        ):
            writer.write_table(table, max_chunksize=2)
        (folder / "state.json").write_text(
            json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]})
        )
        features = {
            "label": {"names": ["good", "broken"], "_type": "ClassLabel"},
            "image": {"_type": "Image"},
        }
        (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    if several:
        (tmp_path / "set/dataset_dict.json").write_text(json.dumps({"splits": list(parts)}))
    (images,) = open_images(tmp_path / "set")
    assert images.layout == "Hugging Face data set"
    assert sorted(images.ids) == [f"{i}.png" for i in range(6)]
    for item in images.items:
        i = int(item.id[0])
        assert item.label == ("good", "broken")[i % 2]
        assert item.split == (("train" if i < 4 else "test") if several else None)
        np.testing.assert_array_equal(np.asarray(item.read()), picture(i)[0])


def test_mvtec_loco_unites_the_masks_of_an_image(tmp_path):
    for i in range(2):
        save(tmp_path / f"cup/train/good/{i}.png", picture(i)[0])
        save(tmp_path / f"cup/test/good/{i}.png", picture(i)[0])
    save(tmp_path / "cup/test/logical_anomalies/000.png", picture(5)[0])
    for k in range(2):
        mask = np.zeros((32, 32), np.uint8)
        mask[4 * k : 4 * k + 2, :3] = 200 + k
        save(tmp_path / f"cup/ground_truth/logical_anomalies/000/{k:03d}.png", mask)
    (images,) = open_images(tmp_path / "cup")
    assert images.layout == "MVTec category"
    assert images.select(label="logical_anomalies")[0].read_mask().sum() == 12


def test_a_category_whose_good_images_are_called_ok(tmp_path):
    for i in range(2):
        save(tmp_path / f"cup/train/OK/{i}.png", picture(i)[0])
        save(tmp_path / f"cup/test/OK/{i}.png", picture(i)[0])
        save(tmp_path / f"cup/test/NOK/{i}.png", picture(i)[0])
        save(tmp_path / f"cup/ground_truth/NOK/{i}.png", picture(i, defect=True)[1].astype(np.uint8))
    (images,) = open_images(tmp_path / "cup")
    assert for_detection(images).labels.tolist() == [0, 0, 1, 1, 0, 0]
