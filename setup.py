"""Calls CMake for the native module; everything else stands in pyproject.toml."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext


class CMakeBuild(build_ext):
    """Builds spanbert_ext._C with CMake and ninja; torch takes no part."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        source = Path(__file__).resolve().parent
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake",
            "--fresh",  # a cache of the last build names tools of an isolated environment now gone
            "-S",
            str(source),
            "-B",
            str(build),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY_RELEASE={target}",  # Visual Studio has a folder each
            "-DCMAKE_BUILD_TYPE=Release",
        ]
        # On Windows ninja would need the environment of a developer's prompt; Visual Studio's
        # generator finds its compiler itself.
        if sys.platform != "win32" and shutil.which("ninja"):
            configure += ["-G", "Ninja"]
        architectures = os.environ.get("CMAKE_CUDA_ARCHITECTURES")
        if architectures:
            configure.append(f"-DCMAKE_CUDA_ARCHITECTURES={architectures}")
        compile_ = ["cmake", "--build", str(build), "--config", "Release", "--target", "_C"]
        for command in (configure, compile_):
            try:
                subprocess.run(command, check=True)
            except FileNotFoundError:
                raise SystemExit(
                    "building spanbert_ext needs cmake, which is not on PATH: install it, or build "
                    "without --no-build-isolation, so that pip brings it"
                ) from None
            except subprocess.CalledProcessError as error:
                raise SystemExit(
                    f"building spanbert_ext failed (exit {error.returncode}): {' '.join(command)}\n"
                    "The reason stands above. A C++17 compiler is required (GCC 11, clang 14 or "
                    "newer); OpenMP is optional, and nvcc (SPANBERT_EXT_CUDA=0 builds without it)."
                ) from None


setup(ext_modules=[Extension("spanbert_ext._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
