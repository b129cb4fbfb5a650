"""Readers of url tables and image folders."""
