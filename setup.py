"""The optional compiled coder: the same file that Python runs, through Cython, where a C compiler is at hand."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(f"pyro_compress.pcn.{name}", [f"pyro_compress/pcn/{name}.{ending}"], depends=[TYPES], optional=True)
        for TYPES in ["pyro_compress/pcn/context.pxd"]
        for name, ending in (("context", "py"), ("released", "pyx"))
    ]
)
