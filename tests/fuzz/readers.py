"""A valid file, or several that belong together, for each reader and loader."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
FORMER = ROOT / "tests" / "former"
Files = dict[str, bytes]


@dataclass(frozen=True)
class Reader:
    """What is read.

    Attributes:
        files: makes the valid files.
        read: reads them from their folder; gives arrays that stand for the content.
        damaged: which of the files are damaged, one at a time.
        mend: makes checksums and the like fit the damaged content again.
    """

    files: Callable[[], Files]
    read: Callable[[Path], Any]
    damaged: tuple[str, ...]
    mend: Callable[[Files], Files] | None = None


def made(name: str, write: Callable[[Path], object]) -> Callable[[], Files]:
    """The files that ``write`` makes in a folder, beginning with ``name``."""

    def make() -> Files:
        import tempfile

        with tempfile.TemporaryDirectory() as place:
            write(Path(place) / name)
            return {p.name: p.read_bytes() for p in sorted(Path(place).iterdir())}

    return make


def copied(folder: Path) -> Callable[[], Files]:
    """The files of a folder."""
    return lambda: {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


# -- pictures --------------------------------------------------------------------------------------


def smooth(channels: int, bits: int = 8) -> np.ndarray:
    rows, columns = np.mgrid[0:32, 0:40] / 40
    values = np.stack([np.sin(3 * rows + k) * np.cos(5 * columns) for k in range(channels)], -1)
    return np.rint((values + 1) / 2 * (2**bits - 1)).astype(np.uint8 if bits == 8 else np.uint16)


def picture(name: str, **options: Any) -> Reader:
    def write(path: Path) -> None:
        from PIL import Image

        if path.suffix == ".heic":
            from pillow_heif import register_heif_opener

            register_heif_opener()
        Image.fromarray(smooth(3)).save(path, **options)

    def read(folder: Path) -> Any:
        from restoration.io.images import read_image

        photo = read_image(folder / name)
        return [photo.pixels] + ([] if photo.alpha is None else [photo.alpha])

    mend = checked_png if name.endswith(".png") else None
    return Reader(made(name, write), read, (name,), mend)


def deep(name: str) -> Reader:
    def write(path: Path) -> None:
        from restoration.io.images import Photo, write_image

        values = smooth(3, 16).transpose(2, 0, 1).astype(np.float32) / 65535
        write_image(path, Photo(values, values[0], 16))

    mend = checked_png if name.endswith(".png") else None
    return Reader(made(name, write), picture(name).read, (name,), mend)


def checked_png(files: Files) -> Files:
    """Right checksums: what is damaged reaches the decoder."""

    def mended(content: bytes) -> bytes:
        out, at = content[:8], 8
        while at + 12 <= len(content):
            size = int.from_bytes(content[at : at + 4], "big")
            end = min(at + 8 + size, len(content))
            body = content[at + 4 : end]
            out += content[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
            at = end + 4
        return out + content[at:]

    return {name: mended(content) for name, content in files.items()}


def mask() -> Reader:
    def write(path: Path) -> None:
        from PIL import Image

        Image.fromarray(((smooth(1)[..., 0] > 128) * 255).astype(np.uint8)).save(path)

    def read(folder: Path) -> Any:
        from restoration.io.images import read_mask

        return [read_mask(folder / "mask.png", 32, 40)]

    return Reader(made("mask.png", write), read, ("mask.png",), checked_png)


# -- cubes, scans, clips ---------------------------------------------------------------------------


def cube(name: str, damaged: tuple[str, ...] = (), **options: Any) -> Reader:
    values = np.random.default_rng(0).random((5, 9, 7)).astype(np.float32)

    def write(path: Path) -> None:
        from restoration.io.cubes import Cube, write_cube

        like = Cube(values, np.linspace(400, 900, 5), -1.0)
        if options:
            from scipy.io import savemat

            savemat(path, {"cube": values.transpose(1, 2, 0), "wavelength": like.wavelengths})
        else:
            write_cube(path, like, lambda rows: values[:, rows])

    def read(folder: Path) -> Any:
        from restoration.io.cubes import read_cube

        return [np.array(read_cube(folder / name).values)]

    return Reader(made(name, write), read, damaged or (name,))


def masked(name: str) -> Reader:
    """With masks of valid pixels, in the file and beside it."""
    values = np.random.default_rng(0).random((5, 9, 7)).astype(np.float32)
    valid = values[0] > 0.2

    def write(path: Path) -> None:
        import tifffile

        from restoration.io.cubes import Cube, write_cube

        write_cube(path, Cube(values, mask=valid), lambda rows: values[:, rows])
        tifffile.imwrite(f"{path}.msk", valid.astype(np.uint8))

    def read(folder: Path) -> Any:
        from restoration.io.cubes import read_cube

        found = read_cube(folder / name)
        return [np.array(found.values), found.valid()]

    return Reader(made(name, write), read, (name, name, f"{name}.msk"))


def older(name: str) -> Reader:
    """NetCDF 3 and HDF 4."""
    values = np.random.default_rng(9).integers(0, 99, (5, 9, 7)).astype(np.int16)

    def write(path: Path) -> None:
        if name.endswith(".nc"):
            from scipy.io import netcdf_file

            with netcdf_file(path, "w") as file:
                for axis, count in zip("byx", values.shape, strict=True):
                    file.createDimension(axis, count)
                file.createVariable("cube", "i2", tuple("byx"))[:] = values
                file.createVariable("wavelength", "f8", ("b",))[:] = np.linspace(400, 900, 5)
            return
        from pyhdf import SD

        file4 = SD.SD(str(path), SD.SDC.WRITE | SD.SDC.CREATE)
        found = file4.create("cube", SD.SDC.INT16, values.shape)
        found[:] = values
        found.endaccess()
        file4.end()

    return Reader(made(name, write), cube(name).read, (name,))


def prisma() -> Reader:
    def write(path: Path) -> None:
        import h5py

        rng = np.random.default_rng(7)
        with h5py.File(path, "w") as file:
            for name, bands in (("VNIR", 3), ("SWIR", 2)):
                stored = rng.integers(0, 65535, (9, bands, 7)).astype(np.uint16)
                file[f"HDFEOS/SWATHS/PRS_L1_HCO/Data Fields/{name}_Cube"] = stored
            file.attrs["List_Cw_Vnir"] = np.array([700.0, 500, 0])
            file.attrs["List_Cw_Swir"] = np.array([2000.0, 1000])
            file.attrs["ScaleFactor_Vnir"] = file.attrs["ScaleFactor_Swir"] = 100.0

    return Reader(made("a.he5", write), cube("a.he5").read, ("a.he5",))


def profile() -> Reader:
    """Of a picture: one that can't be used is left alone."""

    def write(path: Path) -> None:
        from PIL import ImageCms

        path.write_bytes(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())

    def read(folder: Path) -> Any:
        from restoration.io.pictures.gamut import gamut_of

        found = gamut_of((folder / "a.icc").read_bytes())
        colours = np.random.default_rng(8).random((3, 2, 2))
        return [colours if found is None else found.from_srgb(found.to_srgb(colours))]

    return Reader(made("a.icc", write), read, ("a.icc",))


def scan(name: str, write: Callable[[Path], object], mend: Any = None) -> Reader:
    def read(folder: Path) -> Any:
        from restoration.io.mri import read_scan

        found = read_scan(folder / name)
        return [v for v in (found.kspace, found.magnitude, found.mask) if v is not None]

    return Reader(made(name, write), read, (name,), mend)


def clip(name: str, write: Callable[[Path], object]) -> Reader:
    def read(folder: Path) -> Any:
        from restoration.io.ultrasound import read_clip

        return list(read_clip(folder / name))

    return Reader(made(name, write), read, (name,))


def kspace() -> np.ndarray:
    rng = np.random.default_rng(1)
    return (rng.normal(size=(2, 3, 12, 10)) + 1j * rng.normal(size=(2, 3, 12, 10))).astype("c8")


def fastmri(path: Path) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file["kspace"] = kspace()
        file["mask"] = np.arange(10) % 2 == 0
        file["ismrmrd_header"] = (
            "<x><encoding><reconSpace><matrixSize><x>12</x><y>10</y><z>1</z></matrixSize>"
            "</reconSpace></encoding></x>"
        )
        file.attrs["max"] = 1.0


def scan_mat(path: Path) -> None:
    from scipy.io import savemat

    savemat(path, {"kspace": kspace(), "mask": np.ones(10)}, do_compression=path.stem == "packed")


def scan_npz(path: Path) -> None:
    np.savez_compressed(path, kspace=kspace(), mask=np.ones(10))


def unpacked(path: Path) -> None:
    np.savez(path, kspace=kspace(), mask=np.ones(10))


def nifti(path: Path) -> None:
    import nibabel

    volume = np.random.default_rng(2).random((10, 12, 2)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([1.0, 1, 2, 1])), path)


def dicom(path: Path) -> None:
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, "1.2.3"
    data.Rows, data.Columns, data.SamplesPerPixel, data.NumberOfFrames = 40, 36, 1, 2
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.PhotometricInterpretation, data.InstanceNumber = "MONOCHROME2", 1
    data.PixelSpacing, data.SliceThickness = [0.5, 0.5], 2
    data.RescaleSlope, data.RescaleIntercept = 1, 0
    rng = np.random.default_rng(3)
    data.PixelData = rng.integers(0, 4096, (2, 40, 36)).astype("<u2").tobytes()
    data.save_as(path, enforce_file_format=True)


def ismrmrd(path: Path) -> None:
    import h5py

    index = np.dtype([("kspace_encode_step_1", "u2"), ("slice", "u2")])
    counts = ("number_of_samples", "active_channels", "center_sample")
    head = np.dtype([("flags", "u8"), *((name, "u2") for name in counts), ("idx", index)])
    lines = np.zeros(20, [("head", head), ("data", h5py.vlen_dtype(np.float32))])
    for k, values in enumerate(kspace().transpose(0, 3, 1, 2).reshape(20, 3, 12)):
        lines[k] = ((0, 12, 3, 6, (k % 10, k // 10)), values.copy().view(np.float32).ravel())
    size = "<matrixSize><x>12</x><y>10</y><z>1</z></matrixSize>"
    xml = (
        f"<h><encodedSpace>{size}</encodedSpace><reconSpace>{size}</reconSpace>"
        "<trajectory>cartesian</trajectory></h>"
    )
    with h5py.File(path, "w") as file:
        file["dataset/data"] = lines
        file["dataset/xml"] = [xml]


def clip_h5(path: Path) -> None:
    import h5py

    frames = np.random.default_rng(4).integers(0, 255, (2, 40, 36)).astype(np.uint8)
    with h5py.File(path, "w") as file:
        file.create_dataset("data/image", data=frames, chunks=(1, 40, 36), compression="gzip")


def zea(path: Path) -> None:
    import h5py

    frames = np.random.default_rng(4).integers(0, 255, (2, 40, 36)).astype(np.uint8)
    with h5py.File(path, "w") as file:
        file["tracks/track_0/data/image/values"] = frames
        file["tracks/track_0/data/image/coordinates"] = np.zeros((40, 36, 3), np.float32)


def channel_data(path: Path) -> None:
    from scipy.io import savemat

    rf = np.random.default_rng(5).integers(-99, 99, (64, 16, 2)).astype(np.int16)
    parameters = {"fs": 2e7, "pitch": 3e-4, "c": 1540.0, "t0": 0.0, "TXangle": [0.0, 0.1]}
    savemat(path, {"RF": rf, "param": parameters}, do_compression=path.stem == "packed")


# -- arrays and texts ------------------------------------------------------------------------------


def array(name: str, read: Callable[[Path], Any], **arrays: Any) -> Reader:
    def write(path: Path) -> None:
        if path.suffix == ".npy":
            np.save(path, next(iter(arrays.values())))
        else:
            np.savez(path, **arrays)

    return Reader(made(name, write), lambda folder: read(folder / name), (name,))


def depth(path: Path) -> Any:
    from restoration.paired.haze import read_depth

    return [read_depth(path, 9, 7).numpy()]


def sampling(path: Path) -> Any:
    from restoration.io.mri import read_sampling

    return [read_sampling(path, (12, 10))]


def maps(path: Path) -> Any:
    from restoration.io.mri import read_maps

    return [read_maps(path)]


def library(path: Path) -> Any:
    from restoration.hyperspectral.simulation import SpectralLibrary

    return [SpectralLibrary.read(path).reflectance]


def text(name: str, content: str, read: Callable[[Path], Any]) -> Reader:
    return Reader(lambda: {name: content.encode()}, lambda f: read(f / name), (name,))


def regions(path: Path) -> Any:
    from restoration.ultrasound.measures import read_regions

    return list(read_regions(path, (40, 36)).values())


def recipe(path: Path) -> Any:
    from toolbox.training.recipe import TrainingRecipe

    TrainingRecipe.read(path)
    return []


def quant_recipe(path: Path) -> Any:
    from quant.recipe import QuantRecipe
    from solvers.inputs.strict_json import read_object

    QuantRecipe.from_dict(read_object(path))
    return []


# -- models ----------------------------------------------------------------------------------------


def calibration(folder: Path) -> Any:
    from quant.calibration.trajectory import CalibrationSet

    return [s.numpy() for s in CalibrationSet.load(folder / "calibration.safetensors").samples]


def model(folder: Path) -> Any:
    from solvers.denoiser import Denoiser

    return [p.numpy() for p in Denoiser.from_pretrained(folder).network.parameters()]


def latent_files() -> Files:
    import tempfile

    from helpers.latent import write_latent

    with tempfile.TemporaryDirectory() as place:
        return copied(write_latent(Path(place), 9))()


def latent(folder: Path) -> Any:
    from solvers.denoiser import Denoiser

    made = Denoiser.from_pretrained(folder, prompt="red cat", guidance=3.0)
    return [p.numpy() for p in made.autoencoder.decoder.parameters()]


def quantized(folder: Path) -> Any:
    from quant.files import load_quantized
    from solvers.denoiser import Denoiser

    network = Denoiser.from_pretrained(FORMER / "model").network
    return [layer.codes for layer in load_quantized(folder, network).layers().values()]


def bundle(folder: Path) -> Any:
    from toolbox.api import load

    load(folder, threads=1)
    return []


def hashed(files: Files) -> Files:
    """Sizes and hashes that fit the damaged graph, where the manifest can still be read."""
    try:
        content = json.loads(files["bundle.json"])
        for name, entry in content["files"].items():
            data = files[name]
            entry |= {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return files
    return files | {"bundle.json": json.dumps(content).encode()}


def zipped(inner: Reader, name: str) -> Reader:
    """The same, with the damage inside the archive, whose checksums are right."""

    def files() -> Files:
        with zipfile.ZipFile(io.BytesIO(inner.files()[name])) as archive:
            return {member: archive.read(member) for member in archive.namelist()}

    def mend(members: Files) -> Files:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, content in members.items():
                archive.writestr(member, content)
        return {name: out.getvalue()}

    return Reader(files, inner.read, tuple(files()), mend)


CUBE_NPZ = cube("a.npz")
SCAN_NPZ = scan("a.npz", scan_npz)


def listed(name: str, content: str) -> Reader:
    def read(path: Path) -> Any:
        from toolbox.tasks import task_by_name
        from toolbox.tasks.scale.lists import read_list

        read_list(task_by_name("inpaint"), path)
        return []

    files = {name: content.encode(), "a.png": b"", "m.png": b"", "b/c.png": b""}
    return Reader(lambda: files, lambda folder: read(folder / name), (name,))


def manifest() -> Reader:
    """What a stopped machine cut off at the end is no damage: those items begin again."""
    begun = {"item": "a.png", "status": "begun", "out": ["a.png"]}
    failed = {"item": "b.png", "status": "failed", "input": "/b.png", "reason": "cut short"}
    done = begun | {"status": "done", "input": "/a.png", "input_stamp": [9, 12], "out_bytes": [7]}
    done |= {f"{name}_sha256": "0" * 64 for name in ("input", "settings")}
    done |= {"models": {"photo": "0" * 64}, "out_sha256": {"a.png": "0" * 64}}
    lines = [{"restobox": "manifest", "version": 1}, begun, failed, done]

    def read(path: Path) -> Any:
        from toolbox.tasks.scale.manifest import Manifest

        found = Manifest.read(path.parent)
        for name in [*found.written]:
            if (path.parent / name).is_file():
                found.is_ours(path.parent / name)
        return []

    name = "restobox-manifest.jsonl"
    return text(name, "".join(json.dumps(line) + "\n" for line in lines), read)


def video(name: str) -> Reader:
    def write(path: Path) -> None:
        from fractions import Fraction

        from restoration.io.video import Frame, Video, write_video

        codes = np.ascontiguousarray(smooth(3).transpose(2, 0, 1))
        frames = [Frame(np.roll(codes, k, 2), k) for k in range(4)]
        write_video(path, Video(Fraction(25), Fraction(1, 25), 4, True, iter(())), iter(frames))

    def read(folder: Path) -> Any:
        from restoration.io.video import open_video

        with open_video(folder / name) as found:
            return [frame.codes for frame in found.frames]

    return Reader(made(name, write), read, (name,))


def scene(name: str, write: Callable[[Path], object], damaged: tuple[str, ...] = ()) -> Reader:
    def read(folder: Path) -> Any:
        from restoration.io.scenes import open_scene
        from solvers.inputs.errors import reading

        found = open_scene(folder / name)
        with reading(folder / name, "a scene"):
            return [np.asarray(found.array[...])]

    return Reader(made(name, write), read, damaged or (name,))


def zarr(name: str) -> Reader:
    values = np.random.default_rng(0).random((20, 24)).astype(np.float32)

    def make() -> Files:
        import tempfile

        import zarr

        with tempfile.TemporaryDirectory() as place:
            array = zarr.create_array(
                Path(place) / name, shape=(20, 24), chunks=(16, 16), dtype="f4"
            )
            array[...] = values
            return copied(Path(place))()

    one = scene(name, lambda path: None)
    return Reader(make, one.read, (f"{name}/zarr.json", f"{name}/zarr.json", f"{name}/c/0/1"))


READERS: dict[str, Reader] = {
    "list-csv": listed("l.csv", "input,mask,sigma,seed\na.png,m.png,0.1,3\nb/c.png,random:0.5,,\n"),
    "list-jsonl": listed("l.jsonl", '{"input": "a.png", "mask": "m.png", "out": "b/a.png"}\n' * 2),
    "manifest": manifest(),
    "video-mp4": video("a.mp4"),
    "video-mkv": video("a.mkv"),
    "video-avi": video("a.avi"),
    "scene-nifti": scene("a.nii", nifti),
    "scene-nifti-gz": scene("a.nii.gz", nifti),
    "scene-zarr": zarr("a.zarr"),
    "png": picture("a.png"),
    "png-16": deep("a.png"),
    "jpeg": picture("a.jpg"),
    "webp": picture("a.webp"),
    "avif": picture("a.avif"),
    "heic": picture("a.heic", quality=90),
    "tiff": picture("a.tif", compression="tiff_lzw"),
    "tiff-16": deep("a.tif"),
    "mask": mask(),
    "envi": cube("a.hdr", ("a.hdr", "a.hdr", "a.hdr", "a.raw")),
    "cube-mat": cube("a.mat"),
    "cube-mat-plain": cube("a.mat", plain=True),
    "cube-npz": CUBE_NPZ,
    "cube-npz-inside": zipped(CUBE_NPZ, "a.npz"),
    "cube-hdf5": cube("a.h5"),
    "cube-tiff": cube("a.tif"),
    "cube-tiff-mask": masked("a.tif"),
    "cube-npy": cube("a.npy"),
    "cube-netcdf": cube("a.nc"),
    "cube-netcdf3": older("b.nc"),
    "cube-hdf4": older("b.hdf"),
    "prisma": prisma(),
    "profile": profile(),
    "fastmri": scan("a.h5", fastmri),
    "scan-mat": scan("a.mat", scan_mat),
    "scan-mat-packed": scan("packed.mat", scan_mat),
    "scan-npz": SCAN_NPZ,
    "scan-npz-inside": zipped(SCAN_NPZ, "a.npz"),
    "nifti": scan("a.nii", nifti),
    "nifti-gz": scan("a.nii.gz", nifti),
    "dicom": scan("a.dcm", dicom),
    "ismrmrd": scan("a.h5", ismrmrd),
    "clip-hdf5": clip("a.h5", clip_h5),
    "clip-zea": clip("a.h5", zea),
    "clip-dicom": clip("a.dcm", dicom),
    "channel-data": clip("a.mat", channel_data),
    "channel-data-packed": clip("packed.mat", channel_data),
    "depth": array("a.npy", depth, depth=np.random.default_rng(6).random((9, 7))),
    "sampling": array("a.npz", sampling, mask=np.ones((12, 10))),
    "maps": array("a.npz", maps, maps=kspace()[0]),
    "library": array(
        "a.npz",
        library,
        reflectance=np.ones((3, 5)),
        scale=np.array(2.0),
        wavelength_nm=np.linspace(400, 900, 5),
        label=np.array(["a", "b", "c"]),
    ),
    "regions": text("r.json", '{"tissue": [[1, 2, 9, 8]], "blood": [20, 20, 30, 30]}', regions),
    "training-recipe": text(
        "r.toml", (ROOT / "toolbox" / "recipes" / "photo.toml").read_text(), recipe
    ),
    "quantization-recipe": text(
        "r.json",
        '{"weight_bits": 8, "range": "mse", "skip": ["conv_in"], "float_macs": 0.05,\n'
        '"reconstruction": {"iterations": 30, "crop": null}}',
        quant_recipe,
    ),
    "calibration": Reader(
        lambda: {"calibration.safetensors": (FORMER / "calibration.safetensors").read_bytes()},
        calibration,
        ("calibration.safetensors",),
    ),
    "latent": Reader(
        latent_files,
        latent,
        (
            "vae/config.json",
            "vae/diffusion_pytorch_model.safetensors",
            "text_encoder/config.json",
            "text_encoder/model.safetensors",
            "tokenizer/tokenizer.json",
            "tokenizer/tokenizer_config.json",
            "unet/config.json",
        ),
    ),
    "model": Reader(
        copied(FORMER / "model"),
        model,
        (
            "unet/config.json",
            "denoiser.json",
            "scheduler/scheduler_config.json",
            "unet/diffusion_pytorch_model.safetensors",
        ),
    ),
    "quantized": Reader(
        copied(FORMER / "quantized"), quantized, ("recipe.json", "quantized.safetensors")
    ),
    "bundle": Reader(copied(FORMER / "bundle"), bundle, ("bundle.json", "network.onnx"), hashed),
    "restorer": Reader(
        copied(FORMER / "restorer"), bundle, ("bundle.json", "restorer.onnx"), hashed
    ),
}
