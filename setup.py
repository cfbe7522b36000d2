"""What pyproject.toml cannot say: the compiled coder, a README whose links hold elsewhere, studies inside the wheel."""

import re
import shutil
import tomllib
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent


def readme(text: str, source: str) -> str:
    """The README with links to the repository where one is named; else their words alone, and no pictures."""
    link = re.compile(r"(!?)\[([^]]*)\]\((?!https?:)([^)]*)\)")
    if not source:
        return link.sub(lambda found: "" if found[1] else found[2], text)
    base = source.rstrip("/")
    return link.sub(
        lambda found: f"{found[1]}[{found[2]}]({base}/{'raw' if found[1] else 'blob'}/main/{found[3]})", text
    )


class WithStudies(build_py):
    """Puts the studies beside the code that runs them: pyro_compress/studies/examples."""

    def run(self) -> None:
        """Build, then copy."""
        super().run()
        if not self.editable_mode:
            place = Path(self.build_lib) / "pyro_compress" / "studies" / "examples"
            place.mkdir(parents=True, exist_ok=True)
            for study in sorted((HERE / "scripts" / "studies").glob("*.toml")):
                shutil.copy(study, place)


if __name__ == "__main__":
    urls = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["project"].get("urls", {})
    setup(
        long_description=readme((HERE / "README.md").read_text(encoding="utf-8"), urls.get("Source", "")),
        long_description_content_type="text/markdown",
        cmdclass={"build_py": WithStudies},
        ext_modules=[
            Extension(
                f"pyro_compress.pcn.{name}",
                [f"pyro_compress/pcn/{name}.{ending}"],
                depends=["pyro_compress/pcn/context.pxd"],
                optional=True,
            )
            for name, ending in (("context", "py"), ("released", "pyx"))
        ],
    )
