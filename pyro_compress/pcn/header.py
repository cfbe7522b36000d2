"""What a file says of its network beside the tensors: the graph, names and shapes, where it comes from.

Since version 2 it names a template and its widths where the network matches one, and spells the graph out where not.
JSON is packed with raw deflate and a preset dictionary; version 3 has another one. Version 4 spells graphs out in fewer
words (`shortened`); what names a template is still written as version 3. Version 5 is for networks that version 4
cannot say: inputs that are whole numbers, operations that came later, operations that torch runs. It names the set of
operations that it takes. Version 6 has the header of version 5, and several streams behind it (`streams.py`).
"""

from __future__ import annotations

import json
import zlib
from typing import Any

from pyro_compress.graph.operations.table import OPERATIONS
from pyro_compress.length import Length
from pyro_compress.pcn.codec import Reader, varint
from pyro_compress.pcn.gate import built, shape_of
from pyro_compress.pcn.names import shortened as shortened_text
from pyro_compress.pcn.templates import TEMPLATES, matching
from pyro_compress.pcn.words import WORDS
from pyro_compress.types import Graph

MAX_HEADER = 1 << 20
MAX_HEADER_JSON = 8 << 20
MAX_BRACKETS = 1 << 18
"""Lists and objects of a header: each takes as long to read as many bytes of anything else."""

Shapes = dict[str, tuple[int, ...]]
Declared = list[tuple[str, tuple[int, ...], bool]]

DICTIONARY = (
    b'"batch_norm",[],{"weight":".running_mean",".running_var"},{"eps":1e-05}],["avg_pool",["gelu","tanh","sigmoid",'
    b'"silu","pad","add",["conv1d","conv3d","provenance":{"dropout":"spike-and-slab","log-uniform","normal-jeffreys",'
    b'"gaussian","none","fashion-mnist","digits","criterion":"magnitude","group-snr","group-mode","snr"'
    b'{"graph":{"input":[1,28,28],"nodes":[["reshape",[0],{},{"shape":[784]}],["conv2d",[0],{"weight":"0.weight",'
    b'"bias":"0.bias"},{"stride":[1,1],"padding":[[0,0],[0,0]],"dilation":[1,1]}],["max_pool",[1],{},{"kernel":[2,2],'
    b'"stride":[2,2],"padding":[0,0]}],["linear",[1],{"weight":"1.weight","bias":"1.bias"},{}],["relu",[2],{},{}],'
    b'["linear",[3],{"weight":"3.weight","bias":"3.bias"},{}],["relu",[4],{},{}],["linear",[5],{"weight":"5.weight",'
    b'"bias":"5.bias"},{}]]},"tensors":[["1.weight",[300,784],1],["1.bias",[300],1],["3.weight",[100,300],1],["3.bias",'
    b'[100],1],["5.weight",[10,100],1],["5.bias",[10],1]],"meta":{"prior":"horseshoe","data":"mnist","seed":0,'
    b'"parameters_total":266610}}'
)
"""Preset deflate dictionary of the whole header, part of format versions 1 and 2."""

META_DICTIONARY = (
    b'"dropout":"none","gaussian","spike-and-slab","horseshoe","normal-jeffreys","digits","fashion-mnist",'
    b'"criterion":"magnitude","group-snr","group-mode","parameters_total":288010,"parameters_total":431080,'
    b'"seed":1,"validation":0.1,"seed":2,"validation":0.05,"teacher":"lenet-5-relu","teacher":"lenet-5-caffe"'
    b'{"prior":"log-uniform","data":"mnist","seed":0,"validation":0.05,"criterion":"snr","parameters_total":266610,'
    b'"finetune_epochs":60}'
)
"""Preset deflate dictionary of the metadata beside a template, part of format version 2."""

DICTIONARY_3 = DICTIONARY + (
    b'"columns":[{"name":"","categories":[""],"mean":0.,"std":1.,"targets":[{"name":"","classes":["","task":'
    b'"regression","noise":0."finetune_svi":true,"dropout":0.5,"teacher":"lenet-5-caffe","teacher":"lenet-5-relu",'
    b'"scale":"laplace","none","gaussian","spike-and-slab","normal-jeffreys","horseshoe","digits","fashion-mnist",'
    b'"augment":"shift","augment":"crop-flip","finetune_augment":"crop-flip","finetune_augment":"shift","rate":1.5}'
    b'"validation":0.1,"seed":2,"seed":1,"criterion":"magnitude","criterion":"group-snr","criterion":"group-mode",'
    b'"parameters_total":288010,"parameters_total":431080,"finetune_epochs":121,"rate":0.5}"validation":0.05,'
    b'"criterion":"snr","parameters_total":266610,"finetune_epochs":31,"rate":2.0}{"prior":"log-uniform",'
    b'"data":"mnist","seed":0,"validation":0.05,"augment":"affine","criterion":"snr","parameters_total":266610,'
    b'"finetune_epochs":301,"finetune_augment":"affine","rate":1.5}'
)
"""Preset deflate dictionary of both, part of format version 3."""

DICTIONARY_4 = DICTIONARY_3 + (
    b'"seed":1,"validation":0.1,"prior":"horseshoe","data":"digits","criterion":"group-snr","task":"regression",'
    b'"series":true,["attention",[0,1,2]],["layer_norm",0,["norm","weight","bias"],{"eps":1e-06}],["gelu"],["silu"],'
    b'["hardswish"],["sigmoid"],["multiply",[0,1]],["mean",0,{},{"axes":[2,3]}],["avg_pool",0,{},{"kernel":[2,2],'
    b'"stride":[2,2],"padding":[0,0]}],["conv1d",0,["0","weight","bias"],{"stride":[1],"padding":[[1,1]],"dilation":[1]}],'
    b'["max_pool",0,{},{"kernel":[3,3],"stride":[2,2],"padding":[1,1]}],["linear",0,["0","weight","bias"]],["relu"],'
    b'["linear",0,["2","weight","bias"]],["add",[0,1]],["clip",0,{},{"low":0.0,"high":6.0}],["conv2d",0,['
    b'"features.0.conv.1.0","weight"],{"stride":[2,2],"padding":[[1,1],[1,1]],"dilation":[1,1],"groups":32}],'
    b'["batch_norm",0,["layer1.0.bn1","weight","bias","running_mean","running_var"],{"eps":1e-05}],["conv2d",0,['
    b'"layer1.0.conv1","weight"],{"stride":[1,1],"padding":[[0,0],[0,0]],"dilation":[1,1]}],["reshape",0,{},{"shape":['
    b'64]}],["linear",0,["fc","weight","bias"]]]},"tensors":[[64,3,3,3],[64],[64],[64],[64],[32,64,1,1],[10,64],[10]],'
    b'"meta":{"prior":"log-uniform","data":"","seed":0,"criterion":"snr","parameters_total":{"graph":{"input":[3,32,32],'
    b'"nodes":[["conv2d",0,['
)
"""Preset deflate dictionary of a graph that is spelled out, part of format version 4."""

OPERATION_SET = 8
"""Newest set of operations that this program knows; a row says since which set it is there (`Operation.since`)."""
OF_LENGTHS = 8
"""Set that takes sequences shorter than the longest."""
DICTIONARIES = {
    2: (DICTIONARY, META_DICTIONARY),
    3: (DICTIONARY_3, DICTIONARY_3),
    4: (DICTIONARY_4, DICTIONARY_3),
    5: (WORDS, WORDS),
    6: (WORDS, WORDS),
}
"""Version -> dictionaries of a header that spells the network out, and of the metadata beside a template."""
NEWEST = max(DICTIONARIES)
OF_STREAMS = 6
"""Version that a file has that codes in several streams."""
OF_KINDS = 5
"""Version that a file has whose header says more than version 4 can."""
OF_TEMPLATES = 3
"""Version that a file has whose header names a template."""
OF_GRAPHS = 4
"""Version that a file has whose header spells out what version 4 can say."""


def write(graph: Graph, shapes: Shapes, meta: dict[str, Any], several: bool = False) -> tuple[int, bytes]:
    """The oldest version that can hold the header, and the header.

    Args:
        graph: the network.
        shapes: of its tensors, in the file's order.
        meta: JSON values.
        several: whether several streams follow.

    Raises:
        ValueError: it is longer than the format allows, or the metadata is not JSON.
    """
    if not several and (match := matching(graph, shapes)):
        number, widths = match
        sizes = [len(graph.input_shape), *graph.input_shape, len(widths), *widths]
        packed = _deflate(_json(meta), DICTIONARIES[OF_TEMPLATES][1])
        return OF_TEMPLATES, b"".join(varint(n) for n in (number, *sizes)) + _sized(packed)
    document, needed = shortened(graph, shapes) | {"meta": meta}, set_of(graph)
    version = OF_GRAPHS if needed <= OF_GRAPHS and graph.kind == "float32" and not graph.inputs else OF_KINDS
    version = OF_STREAMS if several else version
    if version >= OF_KINDS:
        document["graph"] = {"operations": needed, "kind": graph.kind} | document["graph"]
    if graph.inputs:
        document["graph"]["inputs"] = [one.spelled for one in graph.inputs]
    if graph.least:
        document["graph"]["least"] = graph.least
    return version, varint(0) + _sized(_deflate(_json(document), DICTIONARIES[version][0]))


def set_of(graph: Graph) -> int:
    """The oldest set of operations that has all of a graph's."""
    since = [OPERATIONS[node.op].since for node in graph.nodes if node.op in OPERATIONS]
    return max([1, *since, *([OF_LENGTHS] if graph.least else [])])


def spelled_out(graph: Graph, shapes: Shapes, meta: dict[str, Any]) -> int:
    """Bytes of a header that leaves nothing to what its reader knows: neither a template nor a preset dictionary.

    The words are those of version 4. No such file is written: it is the size to set beside those of other formats.
    """
    document = shortened(graph, shapes) | {"meta": meta}
    return len(varint(0) + _sized(_deflate(_json(document), b"")))


def shortened(graph: Graph, shapes: Shapes) -> dict[str, Any]:
    """Graph and tensors as version 4 spells them out.

    A node leaves out what is empty at its end, says 0 for the node before it as its only input, and names tensors that
    are called prefix.role by prefix and roles. Tensors in the order in which nodes name them are shapes alone.
    """
    nodes = []
    for index, node in enumerate(graph.nodes[1:]):
        inputs = 0 if node.inputs == (index,) else list(node.inputs)
        attributes = Length.spelled(node.attributes, graph.input_shape[0]) if graph.least else node.attributes
        entry = [node.op, inputs, _by_prefix(node.parameters), attributes]
        while entry[-1] in ({}, 0):
            entry.pop()
        nodes.append(entry)
    named = dict.fromkeys(name for node in graph.nodes for name in node.parameters.values())
    bare = list(named) == list(shapes)
    tensors = [list(shape) if bare else [name, list(shape), 1] for name, shape in shapes.items()]
    return {"graph": {"input": list(graph.input_shape), "nodes": nodes}, "tensors": tensors}


def _by_prefix(parameters: dict[str, str]) -> dict[str, str] | list[str]:
    prefixes = {name.rpartition(".")[0] for name in parameters.values()}
    if len(prefixes) != 1 or any(name.rpartition(".")[2] != role for role, name in parameters.items()):
        return parameters
    return [*prefixes, *parameters]


def lengthened(document: Any) -> dict[str, Any]:
    """What `shortened` made, as versions before spell it out.

    Raises:
        ValueError, KeyError, TypeError: not what `shortened` makes.
    """
    nodes = list[list[Any]]()
    empty: tuple[Any, ...] = (0, {}, {})
    for index, entry in enumerate(document["graph"]["nodes"]):
        op, inputs, parameters, attributes = tuple(entry) + empty[len(entry) - 1 :]
        if isinstance(parameters, list):
            prefix, *roles = parameters
            parameters = {role: f"{prefix}.{role}" if prefix else role for role in roles}
        nodes.append([op, [index] if inputs == 0 else inputs, parameters, attributes])
    tensors = document["tensors"]
    if not any(isinstance(part, str) for tensor in tensors for part in tensor):
        named = dict.fromkeys(str(name) for _, _, parameters, _ in nodes for name in parameters.values())
        tensors = [[name, shape, 1] for name, shape in zip(named, tensors, strict=True)]
    graph = document["graph"] | {"nodes": nodes}
    return {"graph": graph, "tensors": tensors, "meta": document["meta"]}


def read(reader: Reader, version: int) -> tuple[Graph, Shapes, dict[str, Any]]:
    """Read a header of version 2 or newer.

    Raises:
        ValueError: truncated, too long, or not understood.
    """
    spelled_out, beside_template = DICTIONARIES[version]
    number = reader.varint()
    if number == 0:
        graph, declared, meta = parse(inflate(_take_sized(reader), spelled_out), version)
        return graph, {name: shape for name, shape, _ in declared}, meta
    if number not in TEMPLATES:
        raise ValueError(f"unknown template {number}")
    input_shape, widths = _sizes(reader), _sizes(reader)
    graph, shapes = TEMPLATES[number](input_shape, widths)
    return graph, shapes, _values(inflate(_take_sized(reader), beside_template))


def inflate(data: bytes, dictionary: bytes = DICTIONARY) -> bytes:
    """Unpack, up to `MAX_HEADER_JSON` bytes."""
    unpacker = zlib.decompressobj(-15, dictionary)
    try:
        text = unpacker.decompress(data, MAX_HEADER_JSON)
    except zlib.error as error:
        raise ValueError(f"the header cannot be unpacked: {error}") from error
    if not unpacker.eof or unpacker.unused_data:
        raise ValueError(f"the header is incomplete or unpacks to more than {MAX_HEADER_JSON} bytes")
    return text


def parse(text: bytes, version: int) -> tuple[Graph, Declared, dict[str, Any]]:
    """A graph that is spelled out, with declared tensors and metadata, from JSON."""
    header = _values(text)
    try:
        if version >= 4:
            header = lengthened(header)
        entry = header["graph"]
        known, kind = (entry["operations"], entry["kind"]) if version >= 5 else (OF_GRAPHS, "float32")
        if type(known) is not int or known > OPERATION_SET:
            raise ValueError(f"the network takes operation set {shortened_text(known)}; known: up to {OPERATION_SET}")
        least = entry.get("least", 0) if version >= 5 else 0
        graph = built(entry["nodes"], entry["input"], kind, entry.get("inputs", []) if version >= 5 else [], least)
        if (needed := set_of(graph)) > known:
            raise ValueError(f"the network has operations of set {needed}; the file says {known}")
        declared = [(name, shape_of(shape), bool(quantized)) for name, shape, quantized in header["tensors"]]
        names, meta = {name for name, _, _ in declared}, header["meta"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the header is not understood: {_reason(error)}") from error
    if len(names) != len(declared):
        raise ValueError("the header declares a tensor twice")
    return graph, declared, meta


def _values(text: bytes) -> Any:
    """JSON without numbers that are none."""
    if text.count(b"[") + text.count(b"{") > MAX_BRACKETS:
        raise ValueError(f"a header of more than {MAX_BRACKETS} lists and objects")
    try:
        return json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the header is not understood: {_reason(error)}") from error


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _reason(error: Exception) -> str:
    """What is wrong, without what others wrote: Python's own errors quote it."""
    return str(error) if type(error) is ValueError else type(error).__name__


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def _deflate(data: bytes, dictionary: bytes) -> bytes:
    preset = (dictionary,) if dictionary else ()
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, *preset)
    return packer.compress(data) + packer.flush()


def _sized(packed: bytes) -> bytes:
    if len(packed) > MAX_HEADER:
        raise ValueError(f"the header takes {len(packed)} bytes, more than the {MAX_HEADER} that the format allows")
    return varint(len(packed)) + packed


def _take_sized(reader: Reader) -> bytes:
    length = reader.varint()
    if length > MAX_HEADER:
        raise ValueError(f"a header of {length} bytes, more than the {MAX_HEADER} allowed")
    return reader.take(length)


def _sizes(reader: Reader) -> tuple[int, ...]:
    """A list of sizes that starts with how many there are."""
    number = reader.varint()
    if number > 64:
        raise ValueError(f"{number} sizes, more than the 64 allowed")
    return shape_of([reader.varint() for _ in range(number)], 64)
