"""Array kernels: NumPy or CuPy by the array, no Spark."""
