"""Packaging of lite_transformer. Settings of the tools are in pyproject.toml."""

from pathlib import Path

from setuptools import Extension, find_packages, setup

HERE = Path(__file__).parent
version = {}
exec((HERE / "lite_transformer" / "__init__.py").read_text(encoding="utf-8"), version)

# The native tier of `lite_transformer.edge`. Without a C++ compiler the package is installed without it. Instruction
# sets are chosen at run time, so no option here names one.
NATIVE = "lite_transformer/edge/native"
native = Extension(
    "lite_transformer.edge.native._engine",
    sources=[f"{NATIVE}/{path.name}" for path in sorted((HERE / NATIVE).glob("*.cpp"))],
    depends=[f"{NATIVE}/{path.name}" for end in ("h", "inl") for path in sorted((HERE / NATIVE).glob(f"*.{end}"))],
    language="c++",
    extra_compile_args=[
        *("-std=c++17", "-O3", "-ffp-contract=fast", "-fvisibility=hidden", "-pthread", "-g0"),
        *("-fno-math-errno", "-fno-trapping-math"),  # neither is ever read
        "-fstack-protector-strong",  # as distributions' Pythons ask anyway: tested with it everywhere
    ],
    extra_link_args=["-pthread"],
    optional=True,
)

setup(
    name="lite-transformer",
    version=version["__version__"],
    description="Lite Transformer with Long-Short Range Attention: a fairseq plugin",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    # fairseq's wheels exist for these two; 3.13 waits for them.
    python_requires=">=3.11,<3.13",
    packages=[
        *find_packages(include=["lite_transformer", "lite_transformer.*", "data_prep", "data_prep.*"]),
        "lite_transformer.checkpoints",
    ],
    # Released models are data: a wheel has checkpoints/ inside the package, where it is found without any setting.
    package_dir={"lite_transformer.checkpoints": "checkpoints"},
    package_data={
        "lite_transformer.checkpoints": ["*.md", "*/*", "*/*/*"],
        "lite_transformer.compression": ["FORMAT.md", "recipes/*.yaml"],
    },
    install_requires=[
        # The distribution whose module is `fairseq` 0.12; PyPI's `fairseq` 0.12.2 neither installs nor imports here.
        "ve-fairseq==0.12.3",
        # 2.6 made weights_only loading the default, 2.13 is what the tests run with.
        "torch>=2.6,<2.14",
        "omegaconf>=2.3,<2.4",
        "hydra-core>=1.3.2,<1.4",
        "numpy>=1.26,<3",
        "PyYAML>=6,<7",
        "sacrebleu>=2.4,<3",
        "sacremoses>=0.1,<0.2",
        "regex>=2023.12",  # of sacremoses, too: letters and digits as Perl knows them
        "subword-nmt>=0.3.8,<0.4",
        "sentencepiece>=0.2,<0.3",
        "Babel>=2.14,<3",
        "num2words>=0.5.13,<0.6",
        "lxml>=5,<7",
        "rouge-score>=0.1.2,<0.2",
        "tqdm>=4.66,<5",
        "matplotlib>=3.8,<4",
    ],
    extras_require={
        # Exporting needs onnx; translating with an exported model onnxruntime alone, and neither torch nor fairseq.
        "edge": ["onnx>=1.16,<2", "onnxruntime>=1.18,<2"],
        # What scripts/bench_edge.py compares with: what people use to translate on a CPU.
        "bench": ["ctranslate2>=4.5,<5"],
        "test": [
            "onnx>=1.16,<2",
            "onnxruntime>=1.18,<2",
            "pytest>=8,<10",
            "pytest-timeout>=2.3,<3",
            "pytest-xdist>=3.5,<4",
            "hypothesis>=6.100,<7",
            # its interpreter runs the GPU kernels on the CPU; a CUDA build of torch brings its own
            "triton>=3.3,<4; platform_system == 'Linux'",
            "ruff>=0.6,<1",
            "mypy>=1.11,<2",
            "types-PyYAML",
            "import-linter>=2.0,<3",
        ],
    },
    ext_modules=[native],
    entry_points={"console_scripts": ["lite-transformer=lite_transformer.cli.main:main"]},
)
