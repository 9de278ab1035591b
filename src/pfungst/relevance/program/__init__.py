"""The linearised network as a program: read off one rewritten forward pass, run forward and in reverse.

==============  ===========================================================================================
``read``        autograd's graph as ops that read and write numbered values
``fuse``        products with constants become part of their neighbours
``ops``         products with constants, sums, reshapes, means; ``parts``: sums that are not yet carried out
``windows``     convolutions and max pooling
``generic``     every other node, by its own derivative
``tape``        runs the ops, many vectors at once
``patches``     forward mode for patches, of which distant ones share a pass
``live``        reverse mode for many vectors on the units that a ReLU lets through; ``units``: what it does
there ==============
===========================================================================================
"""
