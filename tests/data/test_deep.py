"""More than 8 bits, floats and DICOM: one range for a data set, levels against pydicom and NumPy."""

import cv2
import numpy as np
import pytest
from PIL import Image

from pfungst.data import open_images
from pfungst.data.deep import require_one_range
from pfungst.data.window import Window
from pfungst.errors import ConfigError, DataError, UnreadableImages

pydicom = pytest.importorskip("pydicom")


def deep(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def ramp(top, shape=(16, 256), dtype=np.uint16):
    return np.linspace(0, top, shape[1])[None].repeat(shape[0], 0).round().astype(dtype)


def test_12_bits_in_16_keep_their_levels(tmp_path):
    """They had 17 levels of 256: 4,095 of 65,535."""
    deep(tmp_path / "a/0.png", ramp(4095))
    deep(tmp_path / "a/1.png", ramp(900))  # dark: it is not brightened by itself
    (images,) = open_images(tmp_path / "a")
    shown = [np.asarray(i.read())[0, :, 0] for i in images.items]
    np.testing.assert_array_equal(shown[0], np.rint(ramp(4095)[0] * (255 / 4095)))
    np.testing.assert_array_equal(shown[1], np.rint(ramp(900)[0] * (255 / 4095)))
    assert len(np.unique(shown[0])) == 256
    assert "2 pictures of more than 8 bits are shown from 0 to 4,095" in images.notes[0]
    assert images[0].file == str(tmp_path / "a/0.png")
    (images,) = open_images(tmp_path / "a", window="2048,1024")
    assert np.asarray(images[0].read())[0, 0, 0] == 0
    assert int(np.asarray(images[0].read())[0, 128, 0]) == pytest.approx(129, abs=1)


def test_16_bits_in_use_stay_as_they_were(tmp_path):
    deep(tmp_path / "0.png", ramp(65535))
    (images,) = open_images(tmp_path)
    assert not images.notes
    np.testing.assert_array_equal(
        np.asarray(images[0].read())[0, :, 0], np.rint(ramp(65535)[0] * (255 / 65535))
    )


def test_float_tiff(tmp_path):
    deep(tmp_path / "0.tif", ramp(300, dtype=np.float32) - 100)
    deep(tmp_path / "1.tif", ramp(100, dtype=np.float32))
    (images,) = open_images(tmp_path)
    shown = np.asarray(images[0].read())[0, :, 0]
    assert (shown[0], shown[-1]) == (0, 255)
    assert np.asarray(images[1].read())[0, 0, 0] == 85
    assert "floats are shown from -100 to 200" in images.notes[0]
    (tmp_path / "1.tif").unlink()
    deep(tmp_path / "0.tif", ramp(1, dtype=np.float32))
    assert not open_images(tmp_path)[0].notes
    deep(tmp_path / "2.tif", np.full((4, 4), np.nan, np.float32))
    (images,) = open_images(tmp_path)
    with pytest.raises(UnreadableImages, match="a float image"):
        images.check()


def test_12_bits_in_16_of_colours(tmp_path):
    """Pillow keeps the upper 8 of 16 bits of a colour, so that 4,095 became 15."""
    values = np.stack([ramp(4095), ramp(2000), ramp(100)], 2)
    cv2.imwrite(str(tmp_path / "0.png"), values[..., ::-1])
    (images,) = open_images(tmp_path)
    np.testing.assert_array_equal(np.asarray(images[0].read()), np.rint(values * (255 / 4095)))


def test_train_and_val_in_different_ranges_are_refused(tmp_path):
    deep(tmp_path / "train/0.png", ramp(4095))
    deep(tmp_path / "val/0.png", ramp(900))
    sets = [open_images(tmp_path / name)[0] for name in ("train", "val")]
    with pytest.raises(DataError, match="different ranges of values: 0 to 1,023, 0 to 4,095"):
        require_one_range(sets)
    require_one_range([open_images(tmp_path / n, window="2048,4096")[0] for n in ("train", "val")])


def test_heic_is_named_and_counted(tmp_path):
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40))
    deep(tmp_path / "b.png", ramp(255, dtype=np.uint8))
    (images,) = open_images(tmp_path)
    with pytest.raises(UnreadableImages, match=r"a\.heic: HEIF or AVIF \(brand 'heic'\), which is not read"):
        images.check()
    prepared = images.prepare("pillow-bilinear", 8, skip_bad=True)
    assert [id_ for id_, _ in prepared.skipped] == ["a.heic"]


def dicom(path, values, **fields):
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = CTImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.Rows, data.Columns = values.shape[:2]
    data.SamplesPerPixel = 3 if values.ndim == 3 else 1
    if values.ndim == 3:
        data.PlanarConfiguration = 0
    data.PhotometricInterpretation = "RGB" if values.ndim == 3 else "MONOCHROME2"
    bits = 8 * values.dtype.itemsize
    data.BitsAllocated, data.BitsStored, data.HighBit = bits, min(bits, 12), min(bits, 12) - 1
    data.PixelRepresentation = int(values.dtype.kind == "i")
    data.PixelData = values.tobytes()
    for name, value in fields.items():
        setattr(data, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


CT = {"RescaleSlope": 1, "RescaleIntercept": -1024, "WindowCenter": 40, "WindowWidth": 400}


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("dark", [False, True])
def test_the_window_of_the_header_against_pydicom(tmp_path, function, dark):
    kind = {"PhotometricInterpretation": "MONOCHROME1"} if dark else {}
    path = dicom(tmp_path / "a.dcm", ramp(3000), VOILUTFunction=function, **CT, **kind)
    data = pydicom.dcmread(path)
    seen = pydicom.pixels.apply_voi_lut(pydicom.pixels.apply_modality_lut(data.pixel_array, data), data)
    low, high = -1024, 4095 - 1024  # what pydicom maps to: the stored range after the rescaling
    expected = (seen - low) / (high - low) * 255
    (images,) = open_images(tmp_path)
    shown = np.asarray(images[0].read())[..., 0]
    np.testing.assert_allclose(255 - shown if dark else shown, expected, atol=0.51)
    assert "1 DICOM files are shown through the window in their header" in images.notes


def test_a_window_that_is_given_and_none_in_the_header(tmp_path):
    dicom(tmp_path / "a.dcm", ramp(3000), RescaleSlope=1, RescaleIntercept=-1024)
    (images,) = open_images(tmp_path)
    assert "1 DICOM files without a window in the header are shown from -1,024 to 1,976" in images.notes[0]
    shown = np.asarray(images[0].read())[0, :, 0]
    np.testing.assert_array_equal(shown, np.rint(ramp(3000)[0] / 3000 * 255))
    (images,) = open_images(tmp_path, window="40,400")
    hounsfield = ramp(3000)[0].astype(float) - 1024
    shown = np.asarray(images[0].read())[0, :, 0]
    np.testing.assert_allclose(shown, ((hounsfield + 160) / 400 * 255).clip(0, 255), atol=0.51)


def test_the_header_tells_groups_and_colours_stay(tmp_path):
    fields = {"Manufacturer": "Acme", "ManufacturerModelName": "X1", "InstitutionName": "North"}
    fields |= {"ViewPosition": "AP", "StudyDate": "20210304", "PatientID": "p7", "PatientSex": "F"}
    colour = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    dicom(tmp_path / "good/a.dcm", ramp(3000), **CT, **fields)
    dicom(tmp_path / "bad/b.dcm", colour)
    (images,) = open_images(tmp_path)
    assert images[1].groups == {
        "patient": "p7",
        "sex": "F",
        "scanner": "Acme X1",
        "site": "North",
        "view": "AP",
        "date": "2021-03",
    }
    np.testing.assert_array_equal(np.asarray(images[0].read()), colour)


def test_damaged_dicom_is_named(tmp_path):
    path = dicom(tmp_path / "a.dcm", ramp(3000), **CT)
    path.write_bytes(path.read_bytes()[:700])
    (tmp_path / "b.dcm").write_bytes(b"no dicom")
    (images,) = open_images(tmp_path)
    with pytest.raises(UnreadableImages) as caught:
        images.check()
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("text", ["40", "a,b", "40,0", "40,-3", "nan,1", "1,2,3"])
def test_windows_that_cannot_be_read(text):
    with pytest.raises(ConfigError, match="CENTRE,WIDTH"):
        Window.parse(text)
