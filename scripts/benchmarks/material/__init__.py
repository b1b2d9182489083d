"""What benchmarks measure on: real images, made once and kept."""
