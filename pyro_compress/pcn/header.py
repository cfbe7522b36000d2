"""What a file says of its network beside the tensors: the graph, names and shapes, where it comes from.

Since version 2 it names a template and its widths where the network matches one, and spells the graph out as version 1
does where not. JSON is packed with raw deflate and a preset dictionary; version 3 has another one.
"""

from __future__ import annotations

import json
import zlib
from typing import Any

from pyro_compress.pcn.codec import Reader, varint
from pyro_compress.pcn.templates import TEMPLATES, matching
from pyro_compress.types import Graph, Node

MAX_HEADER = 1 << 20
MAX_HEADER_JSON = 8 << 20
MAX_SIZE = 1 << 31

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

DICTIONARIES = {2: (DICTIONARY, META_DICTIONARY), 3: (DICTIONARY_3, DICTIONARY_3)}
"""Version -> dictionaries of a header that spells the network out, and of the metadata beside a template."""
NEWEST = max(DICTIONARIES)


def write(graph: Graph, shapes: Shapes, quantized: set[str], meta: dict[str, Any]) -> bytes:
    """The header of the newest version.

    Raises:
        ValueError: it is longer than the format allows, or the metadata is not JSON.
    """
    spelled_out, beside_template = DICTIONARIES[NEWEST]
    if match := matching(graph, shapes):
        number, widths = match
        sizes = [len(graph.input_shape), *graph.input_shape, len(widths), *widths]
        return b"".join(varint(n) for n in (number, *sizes)) + _sized(_deflate(_json(meta), beside_template))
    nodes = [[n.op, list(n.inputs), n.parameters, n.attributes] for n in graph.nodes[1:]]
    tensors = [[name, list(shape), int(name in quantized)] for name, shape in shapes.items()]
    told = {"graph": {"input": list(graph.input_shape), "nodes": nodes}, "tensors": tensors, "meta": meta}
    return varint(0) + _sized(_deflate(_json(told), spelled_out))


def read(reader: Reader, version: int) -> tuple[Graph, Shapes, dict[str, Any]]:
    """Read a header of version 2 or newer.

    Raises:
        ValueError: truncated, too long, or not understood.
    """
    spelled_out, beside_template = DICTIONARIES[version]
    number = reader.varint()
    if number == 0:
        graph, declared, meta = parse(inflate(_take_sized(reader), spelled_out))
        return graph, {name: shape for name, shape, _ in declared}, meta
    if number not in TEMPLATES:
        raise ValueError(f"unknown template {number}")
    input_shape, widths = _sizes(reader), _sizes(reader)
    graph, shapes = TEMPLATES[number](input_shape, widths)
    try:
        meta = dict(json.loads(inflate(_take_sized(reader), beside_template)))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"the header is not understood: {error}") from error
    return graph, shapes, meta


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


def parse(text: bytes) -> tuple[Graph, Declared, dict[str, Any]]:
    """A graph that is spelled out, with declared tensors and metadata, from JSON."""
    try:
        header = json.loads(text)
        nodes = [Node("input")]
        for op, inputs, parameters, attributes in header["graph"]["nodes"]:
            if not all(0 <= int(i) < len(nodes) for i in inputs):
                raise ValueError("a node reads one that comes later")
            roles = {str(role): str(name) for role, name in parameters.items()}
            nodes.append(Node(str(op), tuple(int(i) for i in inputs), roles, dict(attributes)))
        graph = Graph(tuple(nodes), _shape(header["graph"]["input"]))
        declared = [(str(name), _shape(shape), bool(quantized)) for name, shape, quantized in header["tensors"]]
        meta = dict(header["meta"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"the header is not understood: {error}") from error
    if len({name for name, _, _ in declared}) != len(declared):
        raise ValueError("the header declares a tensor twice")
    return graph, declared, meta


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def _deflate(data: bytes, dictionary: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, dictionary)
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
    return _shape([reader.varint() for _ in range(number)], 64)


def _shape(values: Any, most: int = 8) -> tuple[int, ...]:
    shape = tuple(values)
    if not all(type(size) is int and 0 <= size < MAX_SIZE for size in shape) or len(shape) > most:
        raise ValueError(f"impossible shape {shape}")
    return shape
