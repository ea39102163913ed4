"""The parts of the benches: shapes and models, the programs that run them, and their figures."""
