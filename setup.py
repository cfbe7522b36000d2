"""The optional compiled coder: the same file that Python runs, through Cython, where a C compiler is at hand."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "pyro_compress.pcn.context",
            ["pyro_compress/pcn/context.py"],
            depends=["pyro_compress/pcn/context.pxd"],
            optional=True,
        )
    ]
)
