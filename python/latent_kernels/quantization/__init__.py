"""Vector quantization: hard EM between rows and a codebook, in training and by itself.

vector_quantize    `vector_quantize`: the nearest codes, straight-through, with their statistics
vector_quantizer   `VectorQuantizer`: a torch module that keeps the codebook and moves it
"""
