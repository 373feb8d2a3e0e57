"""Scripts that make the tables, figures and benchmarks."""
