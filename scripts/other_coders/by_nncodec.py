"""NNCodec at one quantisation parameter after the other, in an environment with nncodec."""

from tempfile import TemporaryDirectory

import numpy as np
from nncodec.nn import decode, encode
from serve import Arrays, serve


def code(given: Arrays, qp: int) -> Arrays:
    """The bitstream, and what is decoded from it."""
    with TemporaryDirectory() as folder:
        stream = encode(given, args={"qp": qp, "use_dq": True, "results": folder, "verbose": False})
    decoded = {f"tensor {name}": value for name, value in decode(stream).items()}
    return {"stream": np.frombuffer(bytes(stream), np.uint8), **decoded}


if __name__ == "__main__":
    serve(code)
