"""Metadata, dependencies and package data stand in pyproject.toml."""

from setuptools import setup

setup()
