"""The optional compiled coder: the same file that Python runs, through Cython, where a C compiler is at hand."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "pyro_compress.compression.context",
            ["pyro_compress/compression/context.py"],
            depends=["pyro_compress/compression/context.pxd"],
            optional=True,
        )
    ]
)
