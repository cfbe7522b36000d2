"""The wheel that is built from a clone: with the compiled coder where a C compiler is at hand."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_wheel_holds_the_compiled_coder(tmp_path: Path) -> None:
    """Beside what does the same without a compiler; not what a compiler made on the way."""
    copy = tmp_path / "clone"
    ignored = shutil.ignore_patterns(".git", ".venv", "*.so", "*.c", "__pycache__", "build", "docs", "tests", "runs")
    shutil.copytree(ROOT, copy, ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path / "out", copy]
    subprocess.run(list(map(str, command)), check=True, timeout=600)
    (wheel,) = (tmp_path / "out").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "pyro_compress/pcn/context.py" in names
    if shutil.which("cc"):
        compiled = {Path(name).name.split(".")[0] for name in names if name.endswith((".so", ".pyd"))}
        assert compiled == {"context", "released"}
    assert not [name for name in names if name.endswith(".c")]
    studies = {path.name for path in (ROOT / "scripts" / "studies").glob("*.toml")}
    assert {Path(name).name for name in names if name.endswith(".toml")} == studies
    (metadata,) = [name for name in names if name.endswith("METADATA")]
    told = zipfile.ZipFile(wheel).read(metadata).decode()
    assert "# pyro-compress" in told
    assert "](docs/" not in told
