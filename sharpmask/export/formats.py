"""The formats in which the graphs of a model are written."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.export import ExportedProgram

from sharpmask_kernels.windows import STRIDE

from ..engines import ExportFormat
from ..errors import DataError
from ..geometry import GREY
from ..models import DeepMask
from ..packages import check
from ..plain import to_plain
from ..ranges import shown
from ..version import __version__
from .graphs import BottomUp, WindowMasks, horizontal_names

Graph = BottomUp | WindowMasks
ABOUT: Final = "model.json"
GRAPHS: Final = ("bottom_up", "window_masks")


class Writer(NamedTuple):
    """How a graph is written."""

    suffix: str
    needs: tuple[str, ...]
    """Packages beside PyTorch."""
    write: Callable[[Graph, ExportedProgram, Path], None]


def export(model: DeepMask, out: str | Path, to: ExportFormat | Sequence[ExportFormat] = "onnx") -> list[Path]:
    """Write a model's two graphs into the folder ``out``, and ``model.json``, which says how to use them.

    ``to``: one or several of onnx (``.onnx``), openvino (``.xml`` and ``.bin``), torch (``.pt2``, for
    ``torch.export.load``) and aoti (``.aoti.pt2``, compiled for this machine, for
    ``torch._inductor.aoti_load_package``). The graphs' inputs and outputs are those of :class:`.graphs.BottomUp` and
    :class:`.graphs.WindowMasks`; sizes and the number of windows are dynamic. Graphs of the same model in other formats
    may be in the folder. Returns the files' paths. Raises ``DataError`` for a format that is not known or needs a
    package that is missing, for a model that is not of the CPU in fp32, and where graphs of another model would stay in
    the folder.
    """
    formats = [to] if isinstance(to, str) else [*to]
    writers = [_writer(name) for name in formats]
    if not writers:
        raise DataError(f"to must name a format of {', '.join(WRITERS)}, got none")
    _check_model(model)
    folder = Path(out)
    _refuse_another_model(folder, model, [writer.suffix for writer in writers])
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix=".export-") as part:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of exporters, about their own future
            graphs: tuple[Graph, ...] = BottomUp(model), WindowMasks(model)
            for name, graph in zip(GRAPHS, graphs, strict=True):
                program = torch.export.export(graph.eval(), graph.example(), dynamic_shapes=_dynamic(graph))
                _drop_unused(program)
                for writer in writers:
                    writer.write(graph, program, Path(part) / f"{name}{writer.suffix}")
        (Path(part) / ABOUT).write_text(json.dumps(description(model), indent=2) + "\n")
        written = sorted(Path(part).iterdir(), key=lambda path: (path.name == ABOUT, path.name))
        return [path.replace(folder / path.name) for path in written]


def description(model: DeepMask) -> Mapping[str, Any]:
    """What a program needs to know that runs the graphs: the content of ``model.json``."""
    return {
        "sharpmask": __version__,
        "class": type(model).__name__,
        "weights": _digest(model),
        "window": model.window,
        "stride": STRIDE,
        "grey": GREY,
        "horizontals": horizontal_names(model),
        "search": to_plain(model.search),
    }


def _digest(model: DeepMask) -> str:
    """Tells the weights of one model from those of another."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def _refuse_another_model(folder: Path, model: DeepMask, suffixes: Sequence[str]) -> None:
    """Raise ``DataError`` where ``model.json`` would no longer be about graphs that stay in the folder."""
    written = {f"{name}{suffix}" for name in GRAPHS for suffix in suffixes}
    graphs = {f"{name}{writer.suffix}" for name in GRAPHS for writer in WRITERS.values()}
    stay = sorted(path.name for path in folder.glob("*") if path.name in graphs - written)
    if not stay:
        return
    try:
        about = json.loads((folder / ABOUT).read_bytes())
    except (OSError, ValueError, RecursionError):
        about = None
    now = json.loads(json.dumps(description(model)))
    if not isinstance(about, dict) or about | {"sharpmask": __version__} != now:
        raise DataError(
            f"out: {folder} must hold graphs of this model only, got {stay[0]} of another; give another folder, or "
            "delete the old graphs"
        )


def _writer(name: str) -> Writer:
    if name not in WRITERS:
        raise DataError(f"to must be of {', '.join(WRITERS)}, got {shown(name)}")
    writer = WRITERS[name]
    for package in writer.needs:
        check(package, f"export to {name}", name)
    return writer


def _check_model(model: DeepMask) -> None:
    kind = next(model.parameters())
    if kind.device.type != "cpu" or kind.dtype != torch.float32:
        raise DataError(f"model must be on the cpu in torch.float32 to be exported, got {kind.device}, {kind.dtype}")


def _dynamic(graph: Graph) -> tuple[Any, ...]:
    """Which sizes vary: heights and widths of maps, and the number of windows."""

    def sizes(x: Tensor) -> dict[int, Any]:
        axes = (2, 3) if x.ndim == 4 else (0,)
        return dict.fromkeys(axes, torch.export.Dim.DYNAMIC)

    first, rest = [sizes(x) for x in graph.example()], list[Any]()
    if isinstance(graph, WindowMasks):  # whose last parameter takes any number of maps
        first, rest = first[:3], first[3:]
    return (*first, (*rest,)) if rest else (*first,)


def _drop_unused(program: ExportedProgram) -> None:
    """Leave out the model's tensors that the graph does not use, in its form for inference or of the other graph."""
    unused = {node.name for node in program.graph.nodes if node.op == "placeholder" and not node.users}
    specs = program.graph_signature.input_specs
    dropped = {spec.arg.name: spec for spec in specs if spec.target is not None and spec.arg.name in unused}
    for node in list(program.graph.nodes):
        if node.name in dropped:
            program.graph.erase_node(node)
    for spec in dropped.values():
        for tensors in (program.state_dict, program.constants):
            tensors.pop(str(spec.target), None)
    specs[:] = [spec for spec in specs if spec.arg.name not in dropped]
    program.graph_module.recompile()


def _write_onnx(graph: Graph, program: ExportedProgram, path: Path) -> None:
    made = torch.onnx.export(program, input_names=graph.inputs, output_names=graph.outputs, dynamo=True, verbose=False)
    assert made is not None
    path.write_bytes(made.model_proto.SerializeToString())


def _write_openvino(graph: Graph, program: ExportedProgram, path: Path) -> None:
    import openvino

    made = openvino.convert_model(program)
    for ports, names in ((made.inputs, graph.inputs), (made.outputs, graph.outputs)):
        for port, name in zip(ports, names, strict=True):
            port.get_tensor().set_names({name})
    openvino.save_model(made, path, compress_to_fp16=False)


def _write_torch(graph: Graph, program: ExportedProgram, path: Path) -> None:
    torch.export.save(program, path)


def _write_aoti(graph: Graph, program: ExportedProgram, path: Path) -> None:
    torch._inductor.aoti_compile_and_package(program, package_path=str(path))


WRITERS: Final[Mapping[str, Writer]] = {
    "onnx": Writer(".onnx", ("onnx", "onnxscript"), _write_onnx),
    "openvino": Writer(".xml", ("openvino",), _write_openvino),
    "torch": Writer(".pt2", (), _write_torch),
    "aoti": Writer(".aoti.pt2", (), _write_aoti),
}
"""By the names of :data:`sharpmask.engines.ExportFormat`."""
