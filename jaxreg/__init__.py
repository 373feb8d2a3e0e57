"""Rigid registration of small images."""
