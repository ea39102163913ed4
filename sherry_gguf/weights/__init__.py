"""What a matrix of weights is: float32[rows, k], k being the input dimension. NumPy, but in ``folded`` and ``ternary``.

granularity    which weights share a scale
quantize       latents -> codes and scales, as the trained forward has them
folded         latents of Fairy2i's complex layers -> the real matrix of each
ternary        latents of dense ternary methods -> the values of their forward
two_planes     any weights -> two planes, each weight rounded by itself, with an importance
detect         what weights look like: float, Sherry, or one of its relatives; which grid; who shares a scale
compare        bytes of a type against trained weights, and how many of these a type would change
refusal        what is said of weights that are not Sherry's, or that a type does not hold
channel_order  one grid -> the other, by an order of channels that the model cannot notice
"""
