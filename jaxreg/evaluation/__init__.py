"""Evaluation: the protocol, the harness that applies it, and reports."""
