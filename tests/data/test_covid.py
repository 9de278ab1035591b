"""The two collections of chest X-rays, on tables of their real shape."""

import csv
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from pfungst.data import open_collection, open_covid, open_images, open_nih
from pfungst.data.covid import NEGATIVE, POSITIVE, _test_patients
from pfungst.errors import DataError

COLUMNS = [
    "patientid",
    "offset",
    "sex",
    "age",
    "finding",
    "RT_PCR_positive",
    "survival",
    "intubated",
    "intubation_present",
    "went_icu",
    "in_icu",
    "needed_supplemental_O2",
    "extubated",
    "temperature",
    "pO2_saturation",
    "leukocyte_count",
    "neutrophil_count",
    "lymphocyte_count",
    "view",
    "modality",
    "date",
    "location",
    "folder",
    "filename",
    "doi",
    "url",
    "license",
    "clinical_notes",
    "other_notes",
    "",
]
NIH_COLUMNS = [
    "Image Index",
    "Finding Labels",
    "Follow-up #",
    "Patient ID",
    "Patient Age",
    "Patient Sex",
    "View Position",
    "OriginalImage[Width",
    "Height]",
    "OriginalImagePixelSpacing[x",
    "y]",
    "",
]


@pytest.fixture(scope="module")
def pixel(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pixel") / "pixel.png"
    Image.new("L", (1, 1)).save(path)
    return path


def write(file: Path, columns, rows):
    with file.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def link(path: Path, pixel: Path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(pixel)


def images_per_patient(patients, tested, in_train, in_test):
    """Deal `in_train` and `in_test` images to the patients of each side, each at least one."""
    counts = {}
    for side, total in ((sorted(patients - tested), in_train), (sorted(patients & tested), in_test)):
        share = Counter(side[i % len(side)] for i in range(total))
        counts.update(share)
    return counts


@pytest.fixture(scope="module")
def github(tmp_path_factory, pixel) -> Path:
    """342 positive and 193 negative frontal X-rays of 300 patients, and what else the collection holds."""
    root = tmp_path_factory.mktemp("covid-chestxray-dataset")
    sick, well = {str(p) for p in range(200)}, {f"{p}a" for p in range(300, 400)}
    tested = _test_patients(sick | well, 0.2, 0)
    rows = []
    for patients, finding, train, test in (
        (sick, "Pneumonia/Viral/COVID-19", 272, 70),
        (well, "Pneumonia/Bacterial", 168, 25),
    ):
        for patient, count in images_per_patient(patients, tested, train, test).items():
            for i in range(count):
                view = ("PA", "AP", "AP Supine", "AP Erect")[i % 4]
                name = f"{patient}-{i}.png"
                rows.append(
                    {
                        "patientid": patient,
                        "finding": finding,
                        "view": view,
                        "modality": "X-ray",
                        "folder": "images",
                        "filename": name,
                    }
                )
                link(root / "images" / name, pixel)
    note = 'Fever, cough\nfor 3 days, "dry"'
    rows += [
        {
            "patientid": "2",
            "finding": "Pneumonia/Viral/COVID-19",
            "view": "L",
            "modality": "X-ray",
            "filename": "side.png",
        },
        {
            "patientid": "2",
            "finding": "Pneumonia/Viral/COVID-19",
            "view": "Axial",
            "modality": "CT",
            "folder": "volumes",
        },
    ]
    for row in rows[::7]:
        row["clinical_notes"] = note
    write(root / "metadata.csv", COLUMNS, rows)
    return root


@pytest.fixture(scope="module")
def nih(tmp_path_factory, pixel) -> Path:
    root = tmp_path_factory.mktemp("CXR8")
    rows = []
    for patient in range(1000):
        for visit in range(1 + patient % 7):
            name = f"{patient:08d}_{visit:03d}.png"
            rows.append(
                {
                    "Image Index": name,
                    "Finding Labels": "No Finding",
                    "Patient ID": str(patient),
                    "View Position": "PA",
                }
            )
            link(root / f"images_{1 + patient % 3:03d}" / "images" / name, pixel)
    write(root / "Data_Entry_2017_v2020.csv", NIH_COLUMNS, rows)
    return root


def counts(s, split):
    return Counter((i.groups["source"], i.label) for i in s.items if i.split == split)


def test_the_papers_split_sizes(github, nih):
    s = open_covid(github, nih)
    assert counts(s, "train") == {
        ("GitHub", POSITIVE): 272,
        ("GitHub", NEGATIVE): 168,
        ("NIH", NEGATIVE): 2552,
    }
    assert counts(s, "test") == {("GitHub", POSITIVE): 70, ("GitHub", NEGATIVE): 25, ("NIH", NEGATIVE): 45}
    assert any("2 of 537 images are no frontal X-rays" in n for n in s.notes)


def test_patients_are_never_split(github, nih):
    for seed in (0, 1):
        s = open_covid(github, nih, seed=seed)
        sides = {
            split: {i.groups["patient"] for i in s.items if i.split == split} for split in ("train", "test")
        }
        assert not sides["train"] & sides["test"]
        patients = {i.groups["patient"] for i in s.items if i.groups["source"] == "GitHub"}
        assert len(patients & sides["test"]) == round(0.2 * len(patients))
    assert open_covid(github, nih, seed=1).ids != open_covid(github, nih).ids == open_covid(github, nih).ids


def test_the_balance_holds_for_any_split(github, nih):
    s = open_covid(github, nih, seed=3)
    for split, factor in (("train", 10), ("test", 1)):
        labels = Counter(i.label for i in s.items if i.split == split)
        assert labels[NEGATIVE] == max(factor * labels[POSITIVE], counts(s, split)["GitHub", NEGATIVE])


def test_too_few_nih_images_are_said(github, tmp_path, pixel):
    rows = [{"Image Index": f"{p}.png", "Patient ID": str(p)} for p in range(20)]
    write(tmp_path / "Data_Entry_2017_v2020.csv", NIH_COLUMNS, rows)
    for row in rows[:10]:
        link(tmp_path / "images-224" / row["Image Index"], pixel)
    assert len(open_nih(tmp_path)) == 10
    notes = open_covid(github, tmp_path).notes
    assert any("10 of 20 images" in n for n in notes)
    assert any("2552 NIH images would be needed" in n for n in notes)


def test_clinical_notes_over_several_lines(github):
    notes = [i.groups["clinical_notes"] for i in open_collection(github).items]
    assert 'Fever, cough\nfor 3 days, "dry"' in notes


def test_opened_by_its_folder(github):
    (s,) = open_images(github)
    assert Counter(s.classes) == {POSITIVE: 342, NEGATIVE: 193}


def test_real_radiographs(shared):
    (s,) = open_images(shared / "data" / "covid_xray", label_column="icu")
    assert len(s) == 243
    views = Counter((i.groups["view"], i.label) for i in s.items)
    assert views == {("AP", "icu"): 179, ("AP", "not icu"): 15, ("PA", "icu"): 7, ("PA", "not icu"): 42}
    assert set(s.group("device")) == {"CR", "DX"}
    train = set(s.select(split="train").group("patient"))
    assert len(train) == 57
    assert not train & set(s.select(split="test").group("patient"))
    assert s.select(limit=2).prepare("pillow-bilinear", 64).images.shape == (2, 3, 64, 64)


def test_what_is_missing_is_named(tmp_path, pixel, github):
    with pytest.raises(DataError, match=r"metadata\.csv does not exist"):
        open_collection(tmp_path)
    write(tmp_path / "metadata.csv", ["patientid", "finding"], [])
    with pytest.raises(DataError, match="'view', 'modality', 'filename'"):
        open_collection(tmp_path)
    row = {
        "patientid": "1",
        "finding": "COVID-19",
        "view": "PA",
        "modality": "X-ray",
        "folder": "images",
        "filename": "1.png",
    }
    write(tmp_path / "metadata.csv", COLUMNS, [row])
    with pytest.raises(DataError, match=r"1 of 1 images .*1\.png"):
        open_collection(tmp_path)
    write(tmp_path / "metadata.csv", COLUMNS, [row | {"view": "L"}])
    with pytest.raises(DataError, match="no frontal X-ray among 1"):
        open_collection(tmp_path)
    write(tmp_path / "metadata.csv", COLUMNS, [row | {"patientid": ""}])
    with pytest.raises(DataError, match="no patientid"):
        open_collection(tmp_path)
    with pytest.raises(DataError, match="no column 'icu'"):
        open_collection(github, label="icu")
    with pytest.raises(DataError, match=r"Data_Entry_2017_v2020\.csv does not exist"):
        open_nih(tmp_path)
    write(tmp_path / "Data_Entry_2017_v2020.csv", NIH_COLUMNS, [{"Image Index": "1.png", "Patient ID": "1"}])
    with pytest.raises(DataError, match="none of the 1 images"):
        open_nih(tmp_path)


def test_files_that_are_listed_twice_are_read_once(tmp_path, pixel):
    """Regression: the published metadata.csv lists four files twice, which was refused."""
    row = {"finding": "Pneumonia/Viral/COVID-19", "view": "PA", "modality": "X-ray", "folder": "images"}
    rows = [
        row | {"patientid": p, "filename": f, "sex": s}
        for p, f, s in (("1", "a.png", "F"), ("2", "b.png", "M"), ("1", "a.png", "M"))
    ]
    for name in ("a.png", "b.png"):
        link(tmp_path / "images" / name, pixel)
    write(tmp_path / "metadata.csv", COLUMNS, rows)
    found = open_collection(tmp_path)
    assert [i.id for i in found.items] == ["images/a.png", "images/b.png"]
    assert found.items[0].groups["sex"] == "F"
    assert "1 images are listed twice; the first row of each counts" in found.notes


def test_a_folder_of_both_sources_is_the_aggregate(github, nih, tmp_path):
    (tmp_path / "collection").symlink_to(github)
    (tmp_path / "cxr8").symlink_to(nih)
    (found,) = open_images(tmp_path)
    expected = open_covid(github, nih)
    assert [i.id for i in found.items] == [i.id for i in expected.items]
