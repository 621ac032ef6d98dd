"""The quantizer of one matrix: grid, search, scales, packed codes, and their decoder."""
